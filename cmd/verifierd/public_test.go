package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"portcullis/internal/config"
	"portcullis/internal/translog"
	"portcullis/verifier/approval"
	"portcullis/verifier/record"
)

// Two Pis: the second is the witness of the first, and audits it over the network.
func TestOnePiIsTheWitnessOfAnother(t *testing.T) {
	signer, approver := newSigner(t)
	first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	key, err := logKey(filepath.Join(first, "log.key"))
	if err != nil {
		t.Fatal(err)
	}
	public1 := key.Public().(ed25519.PublicKey)
	other, err := logKey(filepath.Join(second, "log.key"))
	if err != nil {
		t.Fatal(err)
	}
	ownLog, err := record.Open(record.Options{Dir: filepath.Join(second, "log"), Key: other, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer ownLog.Close()
	c2 := config.Verifier{WitnessName: "pi-2", WitnessLogs: []string{base64.StdEncoding.EncodeToString(public1)}, Listen: "x"}
	h, witnessKey, err := public(c2, second, ownLog)
	if err != nil {
		t.Fatal(err)
	}
	at2 := serve1(t, h)

	c1 := config.Verifier{Witnesses: []config.Witness{{URL: at2 + "/witness", Key: witnessKey.String()}}, Quorum: 1}
	asked, err := witnesses(c1)
	if err != nil {
		t.Fatal(err)
	}
	log, err := record.Open(record.Options{Dir: filepath.Join(first, "log"), Key: key, Now: time.Now, Witnesses: asked,
		Approvers: approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: []ed25519.PublicKey{approver}}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- log.Run(ctx) }()
	d := "sha256:" + string(make64('a'))
	a := approval.Approval{Schema: approval.Schema, Name: "x", Version: 1, Purpose: "task", Image: approval.Image{Manifest: d, Config: d, Layers: []string{d}},
		Profile:   approval.Profile{User: "1:1", Network: approval.NetworkNone, Limits: approval.Limits{MemoryBytes: 64 << 20, Pids: 1, MilliCPU: 100}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	envelope, err := a.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Add(envelope); err != nil {
		t.Fatal(err)
	}
	request := approval.Request{Action: approval.Load, Image: a.Image}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err = log.Decide(request); err == nil {
			break
		}
		if approval.Reason(err) != approval.ReasonUncosigned || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	h1, none, err := public(config.Verifier{}, first, log)
	if err != nil || none != nil {
		t.Fatalf("a Pi that is no witness: %v %v", none, err)
	}
	at1 := serve1(t, h1)
	v, err := record.Verifier(public1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := translog.NewReader(translog.Remote(t.Context(), at1+"/log", http.DefaultClient), v)
	if err != nil {
		t.Fatal(err)
	}
	if report, err := record.Audit(r, v, record.AuditOptions{}); err != nil || report.Kinds[record.KindApproval] != 1 {
		t.Errorf("audit: %+v %v", report, err)
	}
	for _, path := range []string{"/", "/log/", "/log/tail-00000000000000000000.journal", "/log/../log.key", "/log.key", "/witness/add-checkpoint", "/approvals", "/log/tile"} {
		a, err := http.Get(at1 + path)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: %d", path, a.StatusCode)
		}
	}
}

func make64(c byte) []byte {
	b := make([]byte, 64)
	for i := range b {
		b[i] = c
	}
	return b
}

func newSigner(t *testing.T) (ed25519.PrivateKey, ed25519.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

func serve1(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- servePublic(ctx, l, h) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}
