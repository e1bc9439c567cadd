package guard

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/lab/dockerd"
	"portcullis/verifier/image"
	"portcullis/verifier/verity"
)

// kernel is the fs-verity of the rig's guard: the machine's, until a test takes another.
type kernel struct {
	mu sync.Mutex
	verity.Files
}

func (k *kernel) now() verity.Files {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Files
}

func (k *kernel) Measure(f *os.File) (verity.Sum, error) { return k.now().Measure(f) }
func (k *kernel) Enable(f *os.File) error                { return k.now().Enable(f) }

// take gives the rig another one for this test.
func (k *kernel) take(t testing.TB, next verity.Files) {
	t.Helper()
	set := func(f verity.Files) verity.Files {
		k.mu.Lock()
		defer k.mu.Unlock()
		was := k.Files
		k.Files = f
		return was
	}
	was := set(next)
	t.Cleanup(func() { set(was) })
}

// sealLayer seals a layer as it is done after a load.
func sealLayer(t *testing.T, s verity.Files, dir string, files []image.File) (sealed, error) {
	t.Helper()
	state, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := state.keepList("sha256:00", files)
	if err != nil {
		t.Fatal(err)
	}
	g := &Guard{state: state, step: newStepLock(), opt: Options{Verity: s}}
	c := g.comparer(false)
	if err := c.onDisk(dir); err != nil {
		t.Fatal(err)
	}
	var did sealed
	return did, g.sealLayer(t.Context(), c, dir, tree, &did)
}

// TestAttack_FileChangedBeforeItIsSealed: what is not the image's is not sealed, and what was
// changed between the look and the sealing is found in the kernel's digest.
func TestAttack_FileChangedBeforeItIsSealed(t *testing.T) {
	for name, during := range map[string]bool{"before the look": false, "after the look": true} {
		t.Run(name, func(t *testing.T) {
			dir, files := layerOf(t, []byte("one"), []byte("two"))
			s := &sealer{sums: map[uint64]verity.Sum{}}
			change := func() {
				if err := os.WriteFile(dir+"/f0", []byte("bad"), 0o644); err != nil {
					t.Error(err)
				}
			}
			if during {
				s.before = sync.OnceFunc(change) // who is quicker than the kernel, which refuses writers from then on
			} else {
				change()
			}
			_, err := sealLayer(t, s, dir, files)
			if own, ok := errors.AsType[*Error](err); !ok || own.Reason != ReasonImageStore {
				t.Errorf("not refused for the image's store: %v", err)
			}
			if !during && s.enabled != 0 {
				t.Errorf("sealed without a look: %d files", s.enabled)
			}
			if _, err := compareAll(t, dir, files, s, formVerity, false); err == nil {
				t.Error("what is not the image's starts")
			}
		})
	}
}

// Files that cannot be sealed now are left, and told; the others are sealed, and only once.
func TestLayerIsSealedAsFarAsItCanBe(t *testing.T) {
	dir, files := layerOf(t, []byte("one"), []byte("two"), nil)
	open, err := os.OpenFile(filepath.Join(dir, "f1"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &sealer{sums: map[uint64]verity.Sum{}}
	did, err := sealLayer(t, s, dir, files)
	if err != nil || did.now != 2 || did.left != 1 || !errors.Is(did.why, unix.ETXTBSY) {
		t.Errorf("beside a writer: %+v, %v", did, err)
	}
	open.Close()
	did, err = sealLayer(t, s, dir, files)
	if err != nil || did.now != 1 || did.before != 2 || did.left != 0 {
		t.Errorf("after it: %+v, %v", did, err)
	}
	if did, err = sealLayer(t, s, dir, files); err != nil || did.before != 3 || did.now != 0 {
		t.Errorf("once more: %+v, %v", did, err)
	}
	s = &sealer{refusal: verity.ErrUnsupported}
	if did, err = sealLayer(t, s, dir, files); !errors.Is(err, verity.ErrUnsupported) || did != (sealed{}) {
		t.Errorf("of a file system without verity: %+v, %v", did, err)
	}
}

// A start that comes while a file is being sealed waits for that, and has the kernel's digest.
func TestStartDuringSealing(t *testing.T) {
	dir, files := layerOf(t, []byte("one"))
	began, let := make(chan struct{}), make(chan struct{})
	s := &sealer{sums: map[uint64]verity.Sum{}, during: func(*os.File) { close(began); <-let }}
	both := new(turns)
	compare := func() (layersHeld, error) {
		c := &comparison{files: s, turns: both, form: formVerity}
		err := errors.Join(c.onDisk(dir), c.sameFiles(t.Context(), dir, listOf(files)))
		if err == nil {
			err = c.contents(t.Context())
		}
		return c.said, err
	}
	first := make(chan error, 1)
	go func() { _, err := compare(); first <- err }()
	<-began
	second := make(chan layersHeld, 1)
	go func() {
		said, err := compare()
		if err != nil {
			t.Error(err)
		}
		second <- said
	}()
	waitFor(t, "the second one", 10*time.Second, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.measured >= 3 })
	close(let)
	if said := <-second; said.String() != LayersSealed || s.enabled != 1 {
		t.Errorf("%+v, sealed %d times", said, s.enabled)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// told finds the last event of this name about an image.
func (r *rig) told(t *testing.T, name, config string) map[string]any {
	t.Helper()
	var last map[string]any
	for line := range strings.Lines(r.log.String()) {
		if !strings.Contains(line, config) || !strings.Contains(line, name) {
			continue
		}
		var f map[string]any
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatal(err)
		}
		last = f
	}
	return last
}

// toldWhere tells whether the engine says where an image lies. One that does not has
// nothing sealed before a start.
func (r *rig) toldWhere(t *testing.T) bool {
	t.Helper()
	if r.daemon.Kind != dockerd.V29Containerd {
		return true
	}
	i := r.ownImage(t, t.Name())
	r.bring(t, i)
	if _, dirs := r.unpackedIn(t.Context(), i.Config); dirs != nil {
		t.Errorf("the containerd image store says that an image lies in %q", dirs)
	}
	return false
}

// ownImage makes and approves an image that shares no layer with another.
func (r *rig) ownImage(t *testing.T, mark string) dockerd.Image {
	t.Helper()
	i, err := dockerd.Make("test/seal:1", append(bytes.Clone(r.probe), mark...), mark)
	if err != nil {
		t.Fatal(err)
	}
	r.approvals.approve(t, i, "task", plain)
	return i
}

// An image that was loaded is sealed without being started, and its first start seals nothing.
// What a process did not come to that was killed is sealed when the next one meets the engine.
func TestImageIsSealedAfterItsLoad(t *testing.T) {
	r := newRig(t)
	if !r.toldWhere(t) {
		return
	}
	s := &sealer{sums: map[uint64]verity.Sum{}, refusal: unix.EINTR} // as of one that is killed
	r.kernel.take(t, s)
	i := r.ownImage(t, t.Name())
	name := r.bring(t, i)
	waitFor(t, "two files left", time.Minute, func() bool { f := r.told(t, "image.sealed", i.Config); return f != nil && f["left"] == 2.0 })

	next := &sealer{sums: map[uint64]verity.Sum{}}
	r.kernel.take(t, next)
	signal(r.fresh)
	waitFor(t, "two files sealed", time.Minute, func() bool { f := r.told(t, "image.sealed", i.Config); return f["sealed"] == 2.0 && f["left"] == 0.0 })
	waitFor(t, "a fit node", 10*time.Second, func() bool { return r.fit() == nil })
	if out, err := r.docker(t, nil, "run", "--rm", name, "say", "on"); err != nil || out != "on\n" {
		t.Fatalf("%v %s", err, out)
	}
	_, dirs := r.unpackedIn(t.Context(), i.Config)
	for n, file := range []string{"probe", "mark"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dirs[n], file), &st); err != nil {
			t.Fatal(err)
		}
		next.mu.Lock()
		if next.times[st.Ino] != 1 {
			t.Errorf("/%s was sealed %d times", file, next.times[st.Ino])
		}
		next.mu.Unlock()
	}
}

// An image that is removed while it is being sealed is no failure, and holds up no other.
func TestImageGoesWhileItIsSealed(t *testing.T) {
	r := newRig(t)
	if !r.toldWhere(t) {
		return
	}
	began, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s := &sealer{sums: map[uint64]verity.Sum{}, during: func(f *os.File) {
		once.Do(func() {
			// While it is open no other file gets its number, by which the sealer knows it.
			held, err := unix.Dup(int(f.Fd()))
			if err != nil {
				t.Error(err)
			}
			t.Cleanup(func() { unix.Close(held) })
			close(began)
			<-let
		})
	}}
	r.kernel.take(t, s)
	i := r.ownImage(t, t.Name())
	r.bring(t, i)
	<-began
	err := r.opt.Engine.RemoveImage(t.Context(), i.Config)
	close(let)
	if err != nil {
		t.Fatal(err)
	}
	other := r.ownImage(t, t.Name()+" another")
	r.bring(t, other)
	waitFor(t, "another image", time.Minute, func() bool { f := r.told(t, "image.sealed", other.Config); return f != nil && f["sealed"] == 2.0 })
	if f := r.told(t, "seal.failed", i.Config); f != nil {
		t.Errorf("of an image that was removed: %v", f)
	}
	if f := r.told(t, "image.sealed", i.Config); f != nil {
		t.Errorf("of an image that was removed: %v", f)
	}
}

// What was exchanged in the store is told, and stays as it is.
func TestAttack_FileExchangedBeforeSealing(t *testing.T) {
	r := newRig(t)
	if !r.toldWhere(t) {
		return
	}
	i, _, _, file := r.inStore(t)
	if err := os.WriteFile(file, []byte("another"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := &sealer{sums: map[uint64]verity.Sum{}}
	r.kernel.take(t, s)
	r.sealLater(i.Config)
	waitFor(t, "a refusal", time.Minute, func() bool {
		f := r.told(t, "seal.failed", i.Config)
		return f != nil && f["reason"] == ReasonImageStore
	})
}
