package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/identity"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/result"
	"portcullis/attestserver/verdict"
	"portcullis/internal/cli"
	"portcullis/internal/rpc"
	"portcullis/internal/translog"
)

// judge is an attestd whose answers a test can spoil.
type judge struct {
	portcullisv1connect.UnimplementedAttestHandler
	key    ed25519.PrivateKey
	log    *translog.Log
	public translogKey
	state  verdict.State
	spoil  func(*v1.AskResponse, *result.Facts)
}

type translogKey = interface {
	Name() string
	KeyHash() uint32
	Verify(msg, sig []byte) bool
}

func (j *judge) facts(nonce []byte) result.Facts {
	entries, _ := j.log.Size()
	return result.Facts{Now: time.Now(), Life: time.Minute, Posture: "card-theft", Nonce: nonce, LogOrigin: j.public.Name(), LogEntries: entries,
		Asked: &result.Asked{Own: make([]byte, 32), Nonces: []result.Bytes{nonce}},
		Verdict: verdict.Verdict{State: j.state, Tier: protocol.TierSoftware, Session: strings.Repeat("a", 26), Reason: "evidence-accepted",
			NotAfter: time.Now().Add(time.Minute), Warnings: []string{"watch out"}}}
}

func (j *judge) GetResult(context.Context, *connect.Request[v1.GetResultRequest]) (*connect.Response[v1.GetResultResponse], error) {
	c := result.Build(j.facts(nil))
	jwt, err := c.JWT(j.key)
	if err != nil {
		return nil, err
	}
	cwt, err := c.CWT(j.key)
	return connect.NewResponse(&v1.GetResultResponse{Jwt: jwt, Cwt: cwt}), err
}

func (j *judge) Ask(_ context.Context, r *connect.Request[v1.AskRequest]) (*connect.Response[v1.AskResponse], error) {
	if _, err := j.log.Append([]byte(`{"state":"trusted"}`)); err != nil {
		return nil, err
	}
	if err := j.log.Publish(); err != nil {
		return nil, err
	}
	f, a := j.facts(r.Msg.Nonce), new(v1.AskResponse)
	reader, err := translog.NewReader(j.log.Reader(), j.public)
	if err != nil {
		return nil, err
	}
	if a.Entry, err = reader.Entry(f.LogEntries - 1); err != nil {
		return nil, err
	}
	proof, err := reader.Prove(f.LogEntries - 1)
	if err != nil {
		return nil, err
	}
	a.Proof = proof.String()
	if r.Msg.Checkpoint != "" {
		earlier, err := translog.ParseCheckpoint([]byte(r.Msg.Checkpoint), j.public)
		if err != nil {
			return nil, err
		}
		if a.Consistency, err = reader.Consistency(earlier); err != nil {
			return nil, err
		}
	}
	if j.spoil != nil {
		j.spoil(a, &f)
	}
	c := result.Build(f)
	if a.Jwt, err = c.JWT(j.key); err == nil {
		a.Cwt, err = c.CWT(j.key)
	}
	return connect.NewResponse(a), err
}

func newJudge(t *testing.T) (j *judge, run func(args ...string) (int, string), key string) {
	t.Helper()
	dir := t.TempDir()
	private, err := identity.LoadOrCreate(filepath.Join(dir, "gateway.key"))
	if err != nil {
		t.Fatal(err)
	}
	signer, public, err := identity.LogSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	log, err := translog.Open(filepath.Join(dir, "verdicts"), signer, public)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	j = &judge{key: private, log: log, public: public, state: verdict.Trusted}
	l, err := rpc.Listen(filepath.Join(dir, rpc.AttestSocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewAttestHandler(j))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, l, mux) }()
	t.Cleanup(func() { cancel(); <-done })
	run = func(args ...string) (int, string) {
		var b bytes.Buffer
		root := &cli.Command{Sub: []*cli.Command{verdictCommand(), attestCommand()}}
		for i, a := range args {
			args[i] = strings.ReplaceAll(a, "DIR", dir)
		}
		code := cli.Run(context.Background(), root, &cli.IO{Out: &b, Err: &b}, args)
		return code, b.String()
	}
	return j, run, base64.StdEncoding.EncodeToString(identity.PublicKey(private))
}

func TestVerdictIsFetchedAndVerifiedElsewhere(t *testing.T) {
	j, run, key := newJudge(t)
	for _, form := range [][]string{nil, {"--cwt"}} {
		if code, out := run(append([]string{"verdict", "get", "--run-dir", "DIR", "--out", "DIR/token"}, form...)...); code != 0 {
			t.Fatal(out)
		}
		code, out := run("verdict", "verify", "DIR/token", "--key", key)
		for _, want := range []string{"PC       trusted (evidence-accepted), EAR status warning", "tier     T0: software only", "posture card-theft, as it says itself", "warning  watch out"} {
			if code != 0 || !strings.Contains(out, want) {
				t.Errorf("%v: exit %d, without %q:\n%s", form, code, want, out)
			}
		}
		other := base64.StdEncoding.EncodeToString(make([]byte, 32))
		if code, out := run("verdict", "verify", "DIR/token", "--key", other); code != 1 || !strings.Contains(out, result.ReasonSignature) {
			t.Errorf("another gateway: %d %s", code, out)
		}
		if code, out := run("verdict", "verify", "DIR/token", "--key", key, "--nonce", "AAAAAAAAAAAAAAAAAAAAAA"); code != 1 || !strings.Contains(out, result.ReasonNonce) {
			t.Errorf("another nonce: %d %s", code, out)
		}
	}
	j.state = verdict.Quarantined
	run("verdict", "get", "--run-dir", "DIR", "--out", "DIR/token")
	if code, out := run("verdict", "verify", "DIR/token", "--key", key, "--json"); code != 1 || !strings.Contains(out, `"ear.status":"contraindicated"`) {
		t.Errorf("quarantined: %d %s", code, out)
	}
	for _, args := range [][]string{{"verdict", "verify"}, {"verdict", "verify", "x", "--key", "AA"}, {"verdict", "get", "x"}, {"attest", "x"}, {"attest", "--key", "AA"}} {
		if code, _ := run(args...); code != 2 {
			t.Errorf("%v: exit %d, want 2", args, code)
		}
	}
}

func TestAttestBelievesNothingThatIsNotShown(t *testing.T) {
	j, run, key := newJudge(t)
	ask := func(args ...string) (int, string) {
		return run(append([]string{"attest", "--run-dir", "DIR", "--key", key}, args...)...)
	}
	if code, out := ask("--out", "DIR/v.jwt", "--context", "before:task-1"); code != 0 || !strings.Contains(out, "log      entry 0 of portcullis/verdicts/") {
		t.Fatalf("%d %s", code, out)
	}
	if code, out := run("verdict", "verify", "DIR/v.jwt", "--key", key); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	if code, out := run("attest", "--run-dir", "DIR", "--key-file", "DIR/gateway.key", "--since", "DIR/verdicts/checkpoint"); code != 0 {
		t.Errorf("with the Pi's own key, and a checkpoint: %d %s", code, out)
	}
	for name, c := range map[string]struct {
		spoil func(*v1.AskResponse, *result.Facts)
		want  string
	}{
		"another nonce":       {func(_ *v1.AskResponse, f *result.Facts) { f.Nonce = []byte("0123456789abcdef") }, result.ReasonNonce},
		"not in the question": {func(_ *v1.AskResponse, f *result.Facts) { f.Asked.Nonces = nil }, result.ReasonNonce},
		"not asked":           {func(_ *v1.AskResponse, f *result.Facts) { f.Asked = nil }, result.ReasonNonce},
		"another entry":       {func(a *v1.AskResponse, _ *result.Facts) { a.Entry = []byte("{}") }, translog.ReasonProof},
		"another index":       {func(_ *v1.AskResponse, f *result.Facts) { f.LogEntries += 5 }, "another entry than the result names"},
		"no proof":            {func(a *v1.AskResponse, _ *result.Facts) { a.Proof = "" }, translog.ReasonProof},
		"old":                 {func(_ *v1.AskResponse, f *result.Facts) { f.Now = f.Now.Add(-time.Hour) }, result.ReasonExpired},
	} {
		j.spoil = c.spoil
		if code, out := ask(); code != 1 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit %d, want 1 with %s: %s", name, code, c.want, out)
		}
	}
	j.spoil = func(a *v1.AskResponse, _ *result.Facts) { a.Consistency = nil }
	if code, out := ask("--since", "DIR/verdicts/checkpoint"); code != 1 || !strings.Contains(out, translog.ReasonFork) {
		t.Errorf("no consistency: %d %s", code, out)
	}
	j.spoil, j.state = nil, verdict.Suspect
	if code, _ := ask(); code != 1 {
		t.Errorf("a suspect: exit %d, want 1", code)
	}
}
