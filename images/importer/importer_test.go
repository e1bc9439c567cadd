package importer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/bundle"
	"portcullis/images/bundle/bundletest"
	"portcullis/images/fat"
	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
)

// files of an image directory as they stand on a stick.
func files(t testing.TB, im *manifesttest.Image) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range []string{manifest.Envelope, manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root} {
		b, err := os.ReadFile(filepath.Join(im.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		out[imageFolder+"/"+name] = b
	}
	return out
}

// stick writes a stick into a file.
func stick(t testing.TB, label string, content map[string][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stick.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fat.Build(f, fat.Options{Size: 64 << 20, Label: label}, content), f.Truncate(64<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func volume(t testing.TB, content map[string][]byte) *fat.FS {
	t.Helper()
	v, err := OpenVolume(stick(t, Label, content))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v.FS
}

func version(n uint64) func(*manifest.Manifest) { return func(m *manifest.Manifest) { m.Version = n } }

// holds says which version a directory holds, whole; 0: none.
func holds(t testing.TB, dir string, trust manifest.Trust) uint64 {
	t.Helper()
	envelope, err := os.ReadFile(filepath.Join(dir, manifest.Envelope))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.OpenUndated(envelope, trust, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !has(dir, envelope, &m.Manifest) {
		t.Fatalf("%s holds half an image", dir)
	}
	return m.Version
}

func TestImageIsTaken(t *testing.T) {
	im := manifesttest.New(t, version(4))
	o := ImageOptions{Dir: filepath.Join(t.TempDir(), "hpc"), Trust: im.Trust, AllowLab: true}
	fs := volume(t, files(t, im))
	r, err := Image(t.Context(), fs, o)
	if err != nil || !r.Changed || r.Version != 4 || holds(t, o.Dir, im.Trust) != 4 {
		t.Fatalf("%+v %v", r, err)
	}
	if r, err := Image(t.Context(), fs, o); err != nil || r.Changed {
		t.Errorf("the same stick again: %+v %v", r, err)
	}
	newer := manifesttest.New(t, version(5))
	if r, err := Image(t.Context(), volume(t, files(t, newer)), o); err != nil || !r.Changed || holds(t, o.Dir, im.Trust) != 5 {
		t.Errorf("%+v %v", r, err)
	}
	var e *manifest.Error
	if _, err := Image(t.Context(), fs, o); !errors.As(err, &e) || e.Reason != manifest.ReasonVersion || holds(t, o.Dir, im.Trust) != 5 {
		t.Errorf("an older image: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(o.Dir))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// An image that was damaged on the Pi is repaired by the same stick.
func TestDamagedImageIsReplaced(t *testing.T) {
	im := manifesttest.New(t, nil)
	o := ImageOptions{Dir: filepath.Join(t.TempDir(), "hpc"), Trust: im.Trust, AllowLab: true}
	fs := volume(t, files(t, im))
	if _, err := Image(t.Context(), fs, o); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(o.Dir, manifest.Kernel), 10); err != nil {
		t.Fatal(err)
	}
	if r, err := Image(t.Context(), fs, o); err != nil || !r.Changed || holds(t, o.Dir, im.Trust) == 0 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestForgedSticksAreRefused(t *testing.T) {
	im := manifesttest.New(t, nil)
	for name, c := range map[string]struct {
		change func(files map[string][]byte, o *ImageOptions)
		want   string
	}{
		"another key":     {nil, manifest.ReasonSignature},
		"a changed root":  {func(f map[string][]byte, _ *ImageOptions) { f["hpc/root.img"][5000] ^= 1 }, manifest.ReasonArtefact},
		"a short kernel":  {func(f map[string][]byte, _ *ImageOptions) { f["hpc/vmlinuz"] = f["hpc/vmlinuz"][1:] }, manifest.ReasonArtefact},
		"a longer kernel": {func(f map[string][]byte, _ *ImageOptions) { f["hpc/vmlinuz"] = append(f["hpc/vmlinuz"], 0) }, fat.ReasonSize},
		"no initrd":       {func(f map[string][]byte, _ *ImageOptions) { delete(f, "hpc/initrd") }, fat.ReasonNotFound},
		"no manifest":     {func(f map[string][]byte, _ *ImageOptions) { delete(f, "hpc/manifest.dsse") }, fat.ReasonNotFound},
		"a huge manifest": {func(f map[string][]byte, _ *ImageOptions) {
			f["hpc/manifest.dsse"] = make([]byte, manifest.MaxEnvelope+1)
		}, fat.ReasonSize},
		"a lab image":     {func(_ map[string][]byte, o *ImageOptions) { o.AllowLab = false }, ReasonLab},
		"below the floor": {func(_ map[string][]byte, o *ImageOptions) { o.Floor = 1 << 40 }, manifest.ReasonVersion},
		"nowhere to go":   {func(_ map[string][]byte, o *ImageOptions) { o.Dir = filepath.Join(o.Dir, "a", "b") }, ReasonStore},
	} {
		f := files(t, im)
		o := ImageOptions{Dir: filepath.Join(t.TempDir(), "hpc"), Trust: im.Trust, AllowLab: true}
		o.Trust.ReleaseKeys = append(o.Trust.ReleaseKeys[:0:0], o.Trust.ReleaseKeys...)
		if name == "another key" {
			o.Trust = bundletest.NewKey(t).Trust
		} else {
			c.change(f, &o)
		}
		if r, err := Image(t.Context(), volume(t, f), o); err == nil || ReasonOf(err) != c.want {
			t.Errorf("%s: %+v %v, want %s", name, r, err, c.want)
		}
		if left, err := os.ReadDir(filepath.Dir(o.Dir)); err == nil && len(left) != 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
}

const (
	envStick = "PORTCULLIS_TEST_STICK"
	envDir   = "PORTCULLIS_TEST_DIR"
)

// TestMain lets this program be the import that is killed.
func TestMain(m *testing.M) {
	if os.Getenv(envStick) == "" {
		os.Exit(m.Run())
	}
	v, err := OpenVolume(os.Getenv(envStick))
	if err == nil {
		trust := manifest.Trust{Threshold: 1}
		trust.ReleaseKeys = append(trust.ReleaseKeys, manifesttest.Key("release key of the test").Public().(ed25519.PublicKey))
		_, err = Image(context.Background(), v.FS, ImageOptions{Dir: os.Getenv(envDir), Trust: trust, AllowLab: true,
			Progress: func(name string, done, total int64) {
				fmt.Println(name, done)
				if name == manifest.Root {
					time.Sleep(time.Minute) // to be killed here
				}
			}})
	}
	fmt.Println(err)
	os.Exit(1)
}

// An import that is killed leaves the old image, whole, and the next one works.
func TestKilledImportLeavesTheOldImage(t *testing.T) {
	old := manifesttest.New(t, version(1))
	o := ImageOptions{Dir: filepath.Join(t.TempDir(), "hpc"), Trust: old.Trust, AllowLab: true}
	if _, err := Image(t.Context(), volume(t, files(t, old)), o); err != nil {
		t.Fatal(err)
	}
	path := stick(t, Label, files(t, manifesttest.New(t, version(2))))
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), envStick+"="+path, envDir+"="+o.Dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for buf := make([]byte, 100); !strings.Contains(said.String(), manifest.Root); {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, said.String())
		}
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if got := holds(t, o.Dir, old.Trust); got != 1 {
		t.Fatalf("version %d", got)
	}
	v, err := OpenVolume(path)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if r, err := Image(t.Context(), v.FS, o); err != nil || !r.Changed || holds(t, o.Dir, old.Trust) != 2 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestOtherSticksAreNotRead(t *testing.T) {
	for name, path := range map[string]string{
		"another label": stick(t, "HOLIDAY", nil), "nothing there": filepath.Join(t.TempDir(), "none"), "no FAT": "/proc/self/exe",
	} {
		if _, err := OpenVolume(path); err == nil || ReasonOf(err) != ReasonVolume {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewestUpdateIsTakenOnce(t *testing.T) {
	k, stranger := bundletest.NewKey(t), bundletest.NewKey(t)
	fs := volume(t, map[string][]byte{"two" + bundle.Extension: k.Bundle(t, 2, nil), "THREE.PCUPDATE": k.Bundle(t, 3, nil),
		"nine" + bundle.Extension: stranger.Bundle(t, 9, nil), "deep/8" + bundle.Extension: k.Bundle(t, 8, nil), "readme.txt": []byte("hello")})
	var taken []byte
	o := UpdateOptions{Trust: k.Trust, Sequence: 1, Tried: filepath.Join(t.TempDir(), "tried"),
		Apply: func(_ context.Context, r io.Reader) (err error) { taken, err = io.ReadAll(r); return err }}
	r, err := Update(t.Context(), fs, o)
	if err != nil || !r.Changed || r.Sequence != 3 || !bytes.Equal(taken, k.Bundle(t, 3, nil)) {
		t.Fatalf("%+v %v", r, err)
	}
	// It fell back; the stick is still in.
	if r, err := Update(t.Context(), fs, o); ReasonOf(err) != ReasonTried || r.Changed {
		t.Errorf("again: %+v %v", r, err)
	}
	o.Sequence = 3 // it is in use
	if r, err := Update(t.Context(), fs, o); err != nil || r.Changed {
		t.Errorf("in use: %+v %v", r, err)
	}
	o.Sequence, o.Tried = 1, filepath.Join(t.TempDir(), "tried")
	o.Apply = func(context.Context, io.Reader) error { return &bundle.Error{Reason: bundle.ReasonModel} }
	if _, err := Update(t.Context(), fs, o); ReasonOf(err) != bundle.ReasonModel {
		t.Errorf("refused: %v", err)
	}
	if _, err := os.Stat(o.Tried); !errors.Is(err, os.ErrNotExist) {
		t.Error("an update that was refused is remembered")
	}
}

func TestSticksWithoutAnUpdate(t *testing.T) {
	k := bundletest.NewKey(t)
	none := UpdateOptions{Trust: k.Trust, Apply: func(context.Context, io.Reader) error { return errors.New("applied") }}
	if r, err := Update(t.Context(), volume(t, nil), none); err != nil || r.File != "" {
		t.Errorf("%+v %v", r, err)
	}
	forged := volume(t, map[string][]byte{"a" + bundle.Extension: bundletest.NewKey(t).Bundle(t, 2, nil)})
	if _, err := Update(t.Context(), forged, none); ReasonOf(err) != bundle.ReasonSignature {
		t.Errorf("a stranger's: %v", err)
	}
	short := volume(t, map[string][]byte{"a" + bundle.Extension: k.Bundle(t, 2, nil)[:50]})
	if _, err := Update(t.Context(), short, none); ReasonOf(err) != bundle.ReasonTruncated {
		t.Errorf("cut off: %v", err)
	}
}
