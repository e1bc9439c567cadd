package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/images/manifest"
	"portcullis/internal/cli"
	"portcullis/internal/rpc"
	"portcullis/internal/translog"
	"portcullis/verifier/approval"
	"portcullis/verifier/fetch"
	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
	"portcullis/verifier/record"
	"portcullis/verifier/witness"
)

// approvalsRig is a Pi with a log of approvals behind its socket, and an operator.
type approvalsRig struct {
	t      *testing.T
	tmp    string
	runDir string
	log    *record.Record
	dir    string
	key    string
	public ed25519.PublicKey
}

func newApprovalsRig(t *testing.T) *approvalsRig {
	t.Helper()
	r := &approvalsRig{t: t, tmp: t.TempDir(), runDir: t.TempDir()}
	r.dir = filepath.Join(r.tmp, "log")
	for _, k := range []string{"one", "two", "three"} {
		if _, err := manifest.GenerateKey(r.path(k)); err != nil {
			t.Fatal(err)
		}
	}
	r.run(0, "", "approvals", "approvers", r.path("one.pub"), r.path("two.pub"), "--threshold", "2", "--out", r.path("approvers.json"))
	approvers, err := approval.LoadApprovers(r.path("approvers.json"))
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.public, r.key = public, base64.StdEncoding.EncodeToString(public)
	_, w, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	logKey, err := record.Verifier(public)
	if err != nil {
		t.Fatal(err)
	}
	server, err := witness.NewServer(filepath.Join(r.tmp, "witness"), "w1", w, []note.Verifier{logKey}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(server)
	t.Cleanup(h.Close)
	if err := os.WriteFile(r.path("witness.key"), []byte(server.Key().String()), 0o600); err != nil {
		t.Fatal(err)
	}
	witnesses, err := record.NewWitnesses(1, []*witness.Client{{URL: h.URL, Key: server.Key(), HTTP: h.Client()}})
	if err != nil {
		t.Fatal(err)
	}
	r.log, err = record.Open(record.Options{Dir: r.dir, Key: private, Approvers: approvers, Now: time.Now, Witnesses: witnesses})
	if err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen(filepath.Join(r.runDir, rpc.VerifierSocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- rpc.Serve(ctx, l, r.log.API()) }()
	go func() { ended <- r.log.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		r.log.Close()
	})
	return r
}

func (r *approvalsRig) path(name string) string { return filepath.Join(r.tmp, name) }

// run runs a command and wants an exit code and a text in what it writes.
func (r *approvalsRig) run(want int, text string, args ...string) string {
	r.t.Helper()
	var b bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{approveCommand(), revokeCommand(), approvalsCommand(), logCommand()}}
	code := cli.Run(context.Background(), root, &cli.IO{Out: &b, Err: &b}, args)
	if code != want || !strings.Contains(b.String(), text) {
		r.t.Errorf("%v: exit %d, want %d with %q\n%s", args, code, want, text, b.String())
	}
	return b.String()
}

// until waits for the log's own turn: a second or so.
func (r *approvalsRig) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s does not happen", what)
		}
	}
}

func (r *approvalsRig) request(file string) approval.Request {
	r.t.Helper()
	a, err := image.Open(r.t.Context(), file, image.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	defer a.Close()
	profile := strictProfile
	return approval.Request{Action: approval.Start, Image: a.Image(), Purpose: "task", Profile: &profile, Caller: "uid 0"}
}

// An image is approved by two people on two machines, put into force, started,
// proved, audited by another node, and revoked.
func TestFromAnImageToItsAudit(t *testing.T) {
	r := newApprovalsRig(t)
	files := imagetest.OCI(t, imagetest.OneFile(t, "bin/a", "one"))
	img, envelope := files.File(t), r.path("hello.approval")
	r.run(0, "hello version 3 for task", "approve", img, "--name", "hello", "--version", "3", "--purpose", "task", "--profile", "strict", "--key", r.path("one"), "--out", envelope)
	r.run(1, approval.ReasonThreshold, "approvals", "add", envelope, "--run-dir", r.runDir)
	if _, err := r.log.Decide(r.request(img)); approval.Reason(err) != approval.ReasonUnapproved {
		t.Errorf("before it is approved: %v", err)
	}
	r.run(0, "signed by", "approve", "--add", envelope, "--key", r.path("two"))
	r.run(0, "signed by", "approvals", "show", envelope)
	r.run(0, `"kind":"approval"`, "approvals", "add", envelope, "--run-dir", r.runDir, "--json")
	r.run(0, "stands in the log already", "approvals", "add", envelope, "--run-dir", r.runDir)
	r.until("the witness's signature", func() bool { s := r.log.Status(); return s.Cosigned == s.Entries })
	if _, err := r.log.Decide(r.request(img)); err != nil {
		t.Fatal(err)
	}
	r.run(0, "2, an approval needs 2", "approvals", "status", "--run-dir", r.runDir)
	r.run(0, `"quorum":1`, "approvals", "status", "--run-dir", r.runDir, "--json")
	r.until("the signature of the start", func() bool { s := r.log.Status(); return s.Cosigned == s.Entries })

	place := []string{"--log", r.dir, "--run-dir", r.runDir}
	out := r.run(0, `"state":"valid"`, append([]string{"approvals", "list", "--json"}, place...)...)
	var l listed
	if err := json.Unmarshal([]byte(out), &l); err != nil || l.Approval.Name != "hello" || l.Approval.Version != 3 {
		t.Fatalf("%v: %s", err, out)
	}
	r.run(0, "state    valid", append([]string{"approvals", "show", l.Digest}, place...)...)
	proof, entry := r.path("proof"), r.path("entry")
	r.run(0, "", append([]string{"approvals", "prove", l.Digest, "--out", proof, "--entry", entry}, place...)...)
	verify := []string{"approvals", "verify", proof, "--entry", entry, "--key", r.key, "--approvers"}
	r.run(0, "signed by enough of its approvers", append(verify, r.path("approvers.json"))...)
	r.run(0, "", "approvals", "approvers", r.path("three.pub"), "--out", r.path("others.json"))
	r.run(1, approval.ReasonSignature, append(verify, r.path("others.json"))...)

	// Another node: over HTTP, with what it knows itself.
	h := httptest.NewServer(r.log.Files())
	defer h.Close()
	w1, err := os.ReadFile(r.path("witness.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{h.URL, r.dir} {
		r.run(0, `"pinned":true`, "log", "audit", at, "--key", r.key, "--approvers", r.path("approvers.json"), "--witness", string(w1), "--quorum", "1", "--json")
		r.run(1, record.ReasonForeign, "log", "audit", at, "--key", r.key, "--approvers", r.path("others.json"), "--json")
		r.run(0, "the log's own word", "log", "audit", at, "--key", r.key)
	}
	r.run(1, translog.ReasonCheckpoint, "log", "audit", h.URL, "--key", base64.StdEncoding.EncodeToString(make([]byte, 32)))
	checkpoint, err := os.ReadFile(filepath.Join(r.dir, "checkpoint"))
	if err == nil {
		err = os.WriteFile(r.path("earlier"), checkpoint, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}

	r.run(0, "of   "+l.Digest, "revoke", envelope, "--why", "for the test", "--key", r.path("two"), "--out", r.path("stop"))
	r.run(0, "revocation", "approvals", "add", r.path("stop"), "--run-dir", r.runDir)
	if _, err := r.log.Decide(r.request(img)); approval.Reason(err) != approval.ReasonRevoked {
		t.Errorf("revoked: %v", err)
	}
	r.until("the signature of the revocation", func() bool { s := r.log.Status(); return s.Cosigned == s.Entries })
	r.run(0, approval.ReasonRevoked, append([]string{"approvals", "list", "--all"}, place...)...)
	r.run(0, `"ok":true`, "log", "audit", h.URL, "--key", r.key, "--since", r.path("earlier"), "--json")
	// An image by its archive: whatever is said for it later.
	r.run(0, "of   sha256:", "revoke", img, "--why", "for the test", "--key", r.path("one"), "--out", r.path("never"))
	r.run(0, "revocation", "approvals", "add", r.path("never"), "--run-dir", r.runDir)

	// A forged log under the same name is none for the auditor.
	r.forgedLogIsFound(img)
}

// forgedLogIsFound builds a log with a permission that nobody approved.
func (r *approvalsRig) forgedLogIsFound(img string) {
	r.t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	signer, err := note.NewSigner(noteKey(r.t, record.Origin(public), private))
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := record.Verifier(public)
	if err != nil {
		r.t.Fatal(err)
	}
	dir := filepath.Join(r.tmp, "forged")
	l, err := translog.Open(dir, signer, v)
	if err != nil {
		r.t.Fatal(err)
	}
	q := r.request(img)
	e, err := record.Entry{Time: time.Now(), Kind: record.KindPermission, Permission: &record.Permission{
		Action: approval.Start, Approval: q.Image.Config, Image: q.Image, Purpose: q.Purpose, Profile: q.Profile, Caller: "uid 0"}}.Encode()
	if err == nil {
		_, err = l.Append(e)
	}
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString(public)
	r.run(1, `"reason":"`+record.ReasonUnfounded+`"`, "log", "audit", dir, "--key", key, "--json")
	r.run(1, record.ReasonUnfounded, "approvals", "list", "--log", dir, "--key", key)
}

// noteKey is a note.Signer's text of an Ed25519 key.
func noteKey(t *testing.T, name string, private ed25519.PrivateKey) string {
	t.Helper()
	vkey, err := note.NewEd25519VerifierKey(name, private.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	hash := strings.Split(vkey, "+")[1]
	return "PRIVATE+KEY+" + name + "+" + hash + "+" + base64.StdEncoding.EncodeToString(append([]byte{1}, private.Seed()...))
}

func TestApproveRefuses(t *testing.T) {
	r := newApprovalsRig(t)
	img := imagetest.OCI(t, imagetest.OneFile(t, "bin/a", "one")).File(t)
	full := []string{"approve", img, "--name", "hello", "--version", "3", "--purpose", "task", "--profile", "strict", "--key", r.path("one"), "--out", r.path("x")}
	without := func(flag string) (args []string) {
		for i := 0; i < len(full); i++ {
			if full[i] == flag {
				i++
				continue
			}
			args = append(args, full[i])
		}
		return args
	}
	for _, flag := range []string{"--name", "--version", "--purpose", "--profile", "--key"} {
		r.run(2, "", without(flag)...)
	}
	r.run(2, "--days", append(full, "--days", "0")...)
	r.run(1, approval.ReasonMalformed, append(without("--name"), "--name", "Hello World")...)
	r.run(1, image.ReasonPlatform, append(full, "--platform", "linux/riscv64")...)
	r.run(1, "key-unusable", append(without("--key"), "--key", r.path("one.pub"))...)
	wide := r.path("wide.json")
	for text, reason := range map[string]string{`{"privileged":true}`: approval.ReasonMalformed, `{"user":"0:0"}`: approval.ReasonMalformed, `{}{}`: approval.ReasonMalformed} {
		if err := os.WriteFile(wide, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r.run(1, reason, append(without("--profile"), "--profile", wide)...)
	}
	if err := os.WriteFile(wide, []byte(`{ "limits": {"pids": 1, "memory_bytes": 67108864, "milli_cpu": 100}, "network": "host", "user": "0:0" }`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run(0, `"network":"host"`, append(without("--profile"), "--profile", wide)...)
	bad := imagetest.OCI(t, imagetest.OneFile(t, "../bin/a", "one")).File(t)
	full[1] = bad
	r.run(1, image.ReasonName, full...)
	for _, args := range [][]string{{"revoke", img, "--key", r.path("one")}, {"revoke", "--why", "x", "--key", r.path("one")}, {"approvals", "add"}, {"approvals", "show"}, {"approvals", "show", "nothing"},
		{"approvals", "list", "--log", r.dir, "--run-dir", r.tmp}, {"approvals", "approvers"}, {"approvals", "verify", "x"}, {"log", "audit", r.dir, "--quorum", "1"}} {
		r.run(2, "", args...)
	}
	r.run(1, approval.ReasonApprovers, "approvals", "approvers", r.path("one.pub"), "--threshold", "2")
}

// An image of a registry is approved by its digest: what is signed is what an archive of the same
// image gives, and nothing of it stays here. A registry that gives out something else gets nothing signed.
func TestApproveAnImageOfARegistry(t *testing.T) {
	r := newApprovalsRig(t)
	files := imagetest.OCI(t, imagetest.OneFile(t, "bin/a", "one"))
	var i approval.Image
	a, err := image.Open(t.Context(), files.File(t), image.Options{})
	if err == nil {
		i = a.Image()
		err = a.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	wrong := "" // a digest under which something else is given out
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, hex, _ := strings.Cut(q.URL.Path, "sha256:")
		b, ok := files["blobs/sha256/"+hex]
		if !ok {
			http.NotFound(w, q)
			return
		}
		if "sha256:"+hex == wrong {
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
		}
		w.Write(b)
	}))
	defer web.Close()
	host := strings.TrimPrefix(web.URL, "http://")
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	approve := func(want int, text, word, out string) {
		t.Helper()
		r.run(want, text, "approve", word, "--plain-http", "--name", "hello", "--version", "1", "--purpose", "task", "--profile", "strict",
			"--key", r.path("one"), "--not-before", "2026-01-02T03:04:05Z", "--out", r.path(out))
		if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
			t.Errorf("%s: left: %v %v", word, left, err)
		}
	}
	approve(0, "approval sha256:", files.File(t), "of-a-file")
	approve(0, "approval sha256:", host+"/team/hello@"+i.Manifest, "of-a-registry")
	var both [2][]byte
	for n, name := range []string{"of-a-file", "of-a-registry"} {
		if both[n], err = os.ReadFile(r.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(both[0], both[1]) {
		t.Errorf("two approvals of one image:\n%s\n%s", both[0], both[1])
	}
	for _, wrong = range []string{i.Manifest, i.Config, a.Layers[0].Digest} {
		approve(1, fetch.ReasonDigest, host+"/team/hello@"+i.Manifest, "of-nothing")
	}
	wrong = ""
	approve(1, fetch.ReasonReference, host+"/team/hello:latest@"+i.Manifest, "of-nothing")
	approve(2, "fetch what is at a URL first", web.URL+"/hello.tar", "of-nothing")
	if _, err := os.Stat(r.path("of-nothing")); !os.IsNotExist(err) {
		t.Errorf("something was signed: %v", err)
	}
}
