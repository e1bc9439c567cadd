package guard

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
)

// emptied takes an image out of the engine and out of the guard's state, as a new disk
// of the engine and its next start do.
func (r *rig) emptied(t *testing.T, i dockerd.Image) {
	t.Helper()
	held, err := r.opt.Engine.Image(t.Context(), i.Name)
	if err == nil {
		err = r.opt.Engine.RemoveImage(t.Context(), held.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.has(t.Context(), i.Config) {
		t.Fatal("the engine still has it")
	}
}

// refilled fills the engine and waits until that is done.
func (r *rig) refilled(t *testing.T) {
	t.Helper()
	wait := func() { r.filling.Lock(); defer r.filling.Unlock() }
	wait() // for one that a meeting began
	r.fill(t.Context())
	wait()
}

// keptFiles are the archives of an image.
func (r *rig) keptFiles(t *testing.T, i dockerd.Image) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.opt.Kept, "*@"+strings.TrimPrefix(i.Config, "sha256:")+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// An engine that lost its images gets them again, each by a permission in the log; a
// container of one runs as before.
func TestInvariant07_EngineIsFilledAgain(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	if n := len(r.keptFiles(t, i)); n != 1 {
		t.Fatalf("kept %d times", n)
	}
	r.emptied(t, i)
	r.approvals.reset()
	r.refilled(t)
	if !r.has(t.Context(), i.Config) {
		t.Fatal("the engine does not have it again")
	}
	again := 0
	for _, q := range r.approvals.given {
		if q.Action == approval.Load && q.Image.Config == i.Config && q.Caller == verifierItself {
			again++
		}
	}
	if again != 1 {
		t.Errorf("loading it again was permitted %d times", again)
	}
	if out, err := r.docker(t, nil, "run", "--rm", i.Name, "say", "here"); err != nil || strings.TrimSpace(out) != "here" {
		t.Errorf("%v %s", err, out)
	}
	r.refilled(t)
	if n := len(r.approvals.given); n != 2 {
		t.Errorf("with the image there: %d permissions, not the load and the start alone", n)
	}
}

// What is kept is believed no more than what a caller brings.
func TestAttack_KeptImageChanged(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	r.emptied(t, i)
	file := r.keptFiles(t, i)[0]
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r.refilled(t)
	if r.has(t.Context(), i.Config) {
		t.Error("a changed archive was loaded")
	}
	if n := len(r.keptFiles(t, i)); n != 0 {
		t.Error("a changed archive is still kept")
	}
}

// A revoked image does not come back, and is not kept any longer.
func TestRevokedImageIsNotFilledAgain(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	r.emptied(t, i)
	r.approvals.revoke(t, i.Config)
	r.refilled(t)
	if r.has(t.Context(), i.Config) || len(r.keptFiles(t, i)) != 0 {
		t.Error("a revoked image was loaded, or is still kept")
	}
	if !r.approvals.has(approval.ReasonRevoked) {
		t.Errorf("in the log: %v", r.approvals.reasons())
	}
}

// What could not be permitted at this boot is kept for the next; nothing is loaded.
func TestUnpermittedImageStaysKept(t *testing.T) {
	r := newRig(t)
	i := r.image(t, plain)
	r.emptied(t, i)
	r.approvals.mu.Lock()
	r.approvals.broken = true
	r.approvals.mu.Unlock()
	r.refilled(t)
	r.approvals.reset()
	if r.has(t.Context(), i.Config) || len(r.keptFiles(t, i)) != 1 {
		t.Error("loaded without a permission, or not kept any longer")
	}
	r.refilled(t)
	waitFor(t, "the image", 5*time.Second, func() bool { return r.has(t.Context(), i.Config) })
}

// Of one name there is one archive, and what a killed process left is taken away.
func TestKeptDirectoryStaysSmall(t *testing.T) {
	dir := t.TempDir()
	good := "hello@" + strings.Repeat("a", 64) + ".tar"
	for _, name := range []string{good, ".next-ABC", "stray", ".next-x@y.tar"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := openKept(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != good {
		t.Errorf("%v %v", left, err)
	}
	r := newRig(t)
	i := r.image(t, plain)
	name, _, _ := keptName(filepath.Base(r.keptFiles(t, i)[0]))
	old := filepath.Join(r.opt.Kept, name+"@"+strings.Repeat("b", 64)+".tar")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := r.docker(t, strings.NewReader(string(i.Tar)), "load"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) || len(r.keptFiles(t, i)) != 1 {
		t.Errorf("the older version is still kept: %v", err)
	}
}

// TestAttack_JunkIsKept: what lies in an archive beside an approved image is looked at by nobody, and would take the
// disk from every other image, over each restart. The image alone is kept then; other archives as they came.
func TestAttack_JunkIsKept(t *testing.T) {
	kept := t.TempDir()
	g := before(t, &listed{}, func(o *Options) { o.Kept = kept })
	layer := imagetest.OneFile(t, "a", "one")
	clean := imagetest.OCI(t, layer, layer)
	bulky, saved := maps.Clone(clean), imagetest.Saved(t, layer, layer)
	bulky["junk"] = make([]byte, maxSpare+1)
	saved["junk"] = bulky["junk"]
	for name, files := range map[string]imagetest.Files{"clean": clean, "bulky": bulky, "saved": saved} {
		tar := imagetest.Pack(t, files)
		a, err := image.Read(t.Context(), bytes.NewReader(tar), kept, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := a.Image()
		if err := errors.Join(g.keep(a, name, want), a.Close()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		found, err := filepath.Glob(filepath.Join(kept, name+"@*.tar"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v %v", name, found, err)
		}
		b, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		if name == "clean" && !bytes.Equal(b, tar) || len(b) > maxSpare {
			t.Errorf("%s: %d bytes of %d are kept", name, len(b), len(tar))
		}
		again, err := image.Open(t.Context(), found[0], image.Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := again.Image(); !got.Equal(want) {
			t.Errorf("%s: %+v is kept of %+v", name, got, want)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(kept); err != nil || len(left) != 3 {
		t.Errorf("%v %v", left, err)
	}
}
