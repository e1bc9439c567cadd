package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/hardware/escrow"
	"portcullis/images/luks2"
	"portcullis/internal/cli"
)

// escrowCLI runs the escrow commands and returns what they say.
func escrowCLI(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{escrowCommand()}}
	code = cli.Run(context.Background(), root, &cli.IO{Out: &o, Err: &e}, append([]string{"escrow"}, args...))
	return code, o.String(), e.String()
}

func TestEscrowKeygenAndOpen(t *testing.T) {
	dir := t.TempDir()
	identity, file := filepath.Join(dir, "operator.key"), filepath.Join(dir, "ESCROW.AGE")
	code, out, errOut := escrowCLI("keygen", identity)
	if code != 0 || errOut != "" {
		t.Fatalf("%d %q %q", code, out, errOut)
	}
	to, err := escrow.ParseRecipient(strings.TrimSuffix(out, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := luks2.NewRecoveryKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	const volume = "0f2b9d3e-5a70-4c61-8f6e-2d1c9b7a6e54"
	b, err := escrow.Encrypt(to, escrow.Record{Volume: volume, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ = escrowCLI("open", "--identity", identity, file)
	if code != 0 || !strings.Contains(out, volume) || !strings.Contains(out, string(key.Passphrase())) {
		t.Errorf("%d %s", code, out)
	}
	code, out, _ = escrowCLI("open", "--identity", identity, file, "--json")
	var report map[string]string
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 || report["recovery_key"] != string(key.Passphrase()) || report["volume"] != volume {
		t.Errorf("%d %v %s", code, err, out)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"key file there already": {[]string{"keygen", identity}, 1, "exists"},
		"keygen without a file":  {[]string{"keygen"}, 2, "one file"},
		"no identity":            {[]string{"open", file}, 2, "--identity"},
		"identity is missing":    {[]string{"open", "--identity", file + "x", file}, 1, string(escrow.ReasonIdentity)},
		"identity is no key":     {[]string{"open", "--identity", file, file}, 1, string(escrow.ReasonIdentity)},
		"file is no escrow":      {[]string{"open", "--identity", identity, identity}, 1, string(escrow.ReasonFormat)},
	} {
		code, out, errOut := escrowCLI(c.args...)
		if code != c.code || out != "" || !strings.Contains(errOut, c.says) {
			t.Errorf("%s: %d %q %q", name, code, out, errOut)
		}
	}
	code, out, _ = escrowCLI("keygen", filepath.Join(dir, "other.key"), "--json")
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 {
		t.Fatalf("%d %v %s", code, err, out)
	}
	code, _, errOut = escrowCLI("open", "--identity", report["identity"], file)
	if code != 1 || !strings.Contains(errOut, string(escrow.ReasonForeign)) {
		t.Errorf("another operator: %d %s", code, errOut)
	}
}
