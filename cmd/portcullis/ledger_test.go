package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/internal/cli"
	"portcullis/pxe/ledger"
)

func runLedger(args ...string) (code int, out string) {
	var b bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{ledgerCommand()}}
	code = cli.Run(context.Background(), root, &cli.IO{Out: &b, Err: &b}, append([]string{"ledger"}, args...))
	return code, b.String()
}

func TestLedgerShowAndVerify(t *testing.T) {
	state := t.TempDir()
	path := ledger.Path(state)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, _, err := ledger.Open(path, time.Now, func(ledger.Entry) {})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := l.Packet(ledger.Entry{Session: "s", Artefact: "offer", Transport: ledger.DHCP}, []byte("offer")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if code, out := runLedger("show", "--state", state); code != 0 || strings.Count(out, "offer") != 3 {
		t.Errorf("show: %d, %s", code, out)
	}
	if code, out := runLedger("show", "--state", state, "--session", "x", "--json"); code != 0 || out != "" {
		t.Errorf("show of another session: %d, %s", code, out)
	}
	if code, out := runLedger("verify", "--state", state); code != 0 || !strings.HasPrefix(out, "ok: 3 records, 3 responses, 15 bytes") {
		t.Errorf("verify: %d, %s", code, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte(`"offer"`), []byte(`"0ffer"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := runLedger("verify", "--state", state); code != 1 || !strings.Contains(out, "broken: record 1") {
		t.Errorf("verify of a changed ledger: %d, %s", code, out)
	}
	if code, out := runLedger("verify", "--json", "--state", state); code != 1 || !strings.Contains(out, `"broken_record":1`) {
		t.Errorf("verify --json: %d, %s", code, out)
	}
	for _, args := range [][]string{{"verify", "--state", t.TempDir()}, {"show", "--state", t.TempDir()}} {
		if code, out := runLedger(args...); code != 1 || !strings.Contains(out, "no such file") {
			t.Errorf("%q without a ledger: %d, %s", args, code, out)
		}
	}
	for _, args := range [][]string{{"verify", "word"}, {"show", "--nonsense"}, {"sow"}} {
		if code, _ := runLedger(args...); code != 2 {
			t.Errorf("%q ended with %d", args, code)
		}
	}
}
