package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/fingerprint"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/reference"
	"portcullis/attestserver/server"
	"portcullis/images/manifest"
	"portcullis/internal/cli"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

const fingerprintMAC = "52:54:00:00:00:01"

// fingerprintLab is attestd's service with one operator, and a PC that only has parts.
type fingerprintLab struct {
	t        *testing.T
	dir, key string
	refs     *reference.Store
	events   bytes.Buffer
	approved int
}

func newFingerprintLab(t *testing.T) *fingerprintLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "fp") // short, for the unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &fingerprintLab{t: t, dir: dir, key: filepath.Join(dir, "operator.key")}
	operator, err := manifest.GenerateKey(l.key)
	l.check(err)
	l.refs, err = reference.Open(filepath.Join(dir, "references"))
	l.check(err)
	socket, err := rpc.Listen(filepath.Join(dir, rpc.AttestSocket), nil)
	l.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewFingerprintHandler(&server.Fingerprints{Refs: l.refs, Events: event.NewJSON(&l.events, "attestd", time.Now),
		Refused: rate.NewLimiter(1, 1), Machine: fingerprintMAC, Operators: []ed25519.PublicKey{operator}, Approved: func() { l.approved++ }}))
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, socket, mux) }()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

func (l *fingerprintLab) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// boot shows the PC's parts to attestd's references.
func (l *fingerprintLab) boot(session string, serial string) {
	l.t.Helper()
	d := &protocol.HwData{MemoryKiB: 1000, Components: []protocol.Component{{Class: protocol.HwDMI, Slot: "board_serial", Value: serial},
		{Class: protocol.HwPCI, Slot: "0000:00:03.0", Value: "0x1af4"}}}
	o := fingerprint.Observation{Machine: fingerprintMAC, Session: session, Image: "i", Uptime: time.Minute, Parts: fingerprint.Parts(d)}
	if _, err := fingerprint.Load(l.refs, fingerprintMAC); err != nil {
		l.check(fingerprint.Enrol(l.refs, o, rand.Reader))
		return
	}
	_, err := fingerprint.Observe(l.refs, o)
	l.check(err)
}

func (l *fingerprintLab) run(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{fingerprintCommand()}}
	args = append([]string{"fingerprint"}, args...)
	if args[1] != "verify" {
		args = append(args, "--run-dir", l.dir)
	}
	code = cli.Run(context.Background(), root, &cli.IO{Out: &o, Err: &e}, args)
	return code, o.String(), e.String()
}

func TestFingerprintCommands(t *testing.T) {
	l := newFingerprintLab(t)
	if code, _, errOut := l.run("show"); code != 1 || !strings.Contains(errOut, "fingerprint-none") {
		t.Errorf("before the enrolment: %d %q", code, errOut)
	}
	l.boot("one", "B1")
	if code, out, _ := l.run("show"); code != 0 || !strings.Contains(out, "over 1 of 3 boots") || !strings.Contains(out, "drift       none") {
		t.Errorf("after the first boot: %d %q", code, out)
	}
	if code, _, errOut := l.run("approve", "--key", l.key); code != 1 || !strings.Contains(errOut, "approval-enrolling") {
		t.Errorf("approved too early: %d %q", code, errOut)
	}
	l.boot("two", "B1")
	l.boot("three", "B1")
	if code, out, errOut := l.run("approve", "--key", l.key, "--note", "as delivered"); code != 0 || !strings.Contains(out, "approved    the enrolment") {
		t.Fatalf("the enrolment: %d %q %q", code, out, errOut)
	}

	l.boot("four", "B2")
	code, out, _ := l.run("show", "--json")
	var r fingerprintReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 1 || r.Waiting == nil || r.ApprovedBy == "" {
		t.Fatalf("the drift: %d %q", code, out)
	}
	if want := (fingerprintWaitingChange{"changed", "dmi", "board_serial", "B1", "B2", "fatal", false}); len(r.Waiting.Changes) != 1 || r.Waiting.Changes[0] != want {
		t.Errorf("%+v", r.Waiting.Changes)
	}
	stranger := filepath.Join(l.dir, "stranger.key")
	_, err := manifest.GenerateKey(stranger)
	l.check(err)
	if code, _, errOut := l.run("approve", "--key", stranger); code != 1 || !strings.Contains(errOut, "approval-signature") {
		t.Errorf("a stranger: %d %q", code, errOut)
	}
	record := filepath.Join(l.dir, "approval.dsse")
	if code, out, errOut := l.run("approve", "--key", l.key, "--out", record); code != 0 || !strings.Contains(out, "nothing is approved") {
		t.Fatalf("signing alone: %d %q %q", code, out, errOut)
	}
	if code, _, _ := l.run("show"); code != 1 {
		t.Error("writing a record has approved it")
	}
	if code, out, errOut := l.run("approve", "--record", record, "--json"); code != 0 || !strings.Contains(out, `"of":"drift"`) {
		t.Fatalf("sending: %d %q %q", code, out, errOut)
	}
	if code, _, errOut := l.run("approve", "--record", record); code != 1 || !strings.Contains(errOut, "approval-stale") {
		t.Errorf("sending again: %d %q", code, errOut)
	}
	if code, out, _ := l.run("show", "--parts"); code != 0 || !strings.Contains(out, `dmi board_serial: "B2"`) || !strings.Contains(out, "generation 2") {
		t.Errorf("after the approval: %d %q", code, out)
	}

	code, opening, _ := l.run("open", "dmi", "board_serial")
	file := filepath.Join(l.dir, "board.json")
	l.check(os.WriteFile(file, []byte(opening), 0o600))
	if code != 0 || strings.Contains(opening, "0x1af4") {
		t.Errorf("open: %d %q", code, opening)
	}
	if code, out, errOut := l.run("verify", file, "--record", record, "--operator", l.key+manifest.PublicSuffix); code != 0 || !strings.Contains(out, `"B2"`) {
		t.Errorf("verify: %d %q %q", code, out, errOut)
	}
	if code, _, errOut := l.run("verify", file, "--root", r.Root); code != 1 || !strings.Contains(errOut, "opening-invalid") {
		t.Errorf("against the fingerprint before: %d %q", code, errOut)
	}
	l.check(os.WriteFile(file, []byte(strings.Replace(opening, "B2", "B3", 1)), 0o600))
	if code, out, _ := l.run("verify", file, "--root", r.Waiting.Root, "--json"); code != 1 || !strings.Contains(out, `"ok":false`) {
		t.Errorf("another value: %d %q", code, out)
	}
	if code, _, errOut := l.run("open", "dmi", "none"); code != 1 || !strings.Contains(errOut, "fingerprint-no-part") {
		t.Errorf("a part that is not there: %d %q", code, errOut)
	}
	if l.approved != 2 || !strings.Contains(l.events.String(), `"event":"fingerprint.refused"`) || !strings.Contains(l.events.String(), "as delivered") {
		t.Errorf("%d approvals; events %s", l.approved, l.events.String())
	}
	for _, bad := range [][]string{{"show", "x"}, {"approve"}, {"approve", "--key", "a", "--record", "b"}, {"open", "dmi"}, {"verify", file},
		{"verify", file, "--record", "x"}, {"verify", file, "--root", "12"}} {
		if code, _, _ := l.run(bad...); code != 2 {
			t.Errorf("%v: exit %d, want 2", bad, code)
		}
	}
	for _, sub := range []string{"show", "approve", "open", "verify"} {
		if code, out, _ := l.run(sub, "--help"); code != 0 || !strings.Contains(out, "Example:") {
			t.Errorf("%s --help: %d %q", sub, code, out)
		}
	}
}
