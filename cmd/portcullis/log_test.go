package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/attestserver/identity"
	"portcullis/internal/cli"
	"portcullis/internal/translog"
)

func runLog(args ...string) (code int, out string) {
	var b bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{logCommand()}}
	code = cli.Run(context.Background(), root, &cli.IO{Out: &b, Err: &b}, append([]string{"log"}, args...))
	return code, b.String()
}

// verdictLog makes a Pi's log of n verdicts.
func verdictLog(t *testing.T, n int) (dir, key string) {
	t.Helper()
	state := t.TempDir()
	private, err := identity.LoadOrCreate(filepath.Join(state, "gateway.key"))
	if err != nil {
		t.Fatal(err)
	}
	signer, public, err := identity.LogSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(state, "verdicts")
	l, err := translog.Open(dir, signer, public)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if _, err := l.Append([]byte(`{"time":"2026-01-02T03:04:05.000Z","session":"s","state":"trusted","reason":"evidence-accepted","tier":"T0","posture":"none"}`)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, base64.StdEncoding.EncodeToString(identity.PublicKey(private))
}

func TestLogIsShownProvedAndAudited(t *testing.T) {
	dir, key := verdictLog(t, 300)
	_, other := verdictLog(t, 1)
	tmp := t.TempDir()
	proof, entry := filepath.Join(tmp, "p"), filepath.Join(tmp, "e")
	expect := func(want int, text string, args ...string) {
		t.Helper()
		if code, out := runLog(args...); code != want || !strings.Contains(out, text) {
			t.Errorf("%v: exit %d, want %d with %q\n%s", args, code, want, text, out)
		}
	}
	expect(0, "   299  2026-01-02T03:04:05.000Z  trusted     evidence-accepted  (T0, Pi none)", "show", "--log", dir, "--last", "2")
	expect(0, `{"index":0,"entry":{"time":`, "show", "--log", dir, "--json")
	expect(0, "", "prove", "17", "--log", dir, "--entry", entry, "--out", proof)
	expect(0, "ok: entry 17 of portcullis/verdicts/", "verify", proof, "--entry", entry, "--key", key)
	expect(1, translog.ReasonCheckpoint, "verify", proof, "--entry", entry, "--key", other)
	earlier := filepath.Join(tmp, "checkpoint")
	b, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err == nil {
		err = os.WriteFile(earlier, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	expect(0, `"ok":true`, "audit", "--log", dir, "--json", "--since", earlier)
	expect(1, translog.ReasonCheckpoint, "audit", "--log", dir, "--key", other)
	expect(1, translog.ReasonIndex, "prove", "300", "--log", dir)

	if err := os.WriteFile(entry, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(1, translog.ReasonProof, "verify", proof, "--entry", entry, "--key", key)
	if err := os.WriteFile(filepath.Join(dir, "tile", "entries", "000"), []byte("\x00\x01x"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(1, `"ok":false`, "audit", "--log", dir, "--json")

	for _, args := range [][]string{{"prove", "x"}, {"prove"}, {"verify", proof}, {"show", "--log", tmp}, {"show", "--last", "-1"}, {"audit", "x", "y"}} {
		expect(2, "", args...)
	}
}
