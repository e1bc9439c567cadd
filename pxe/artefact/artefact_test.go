package artefact

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/pxe/artefact/artefacttest"
)

func storeOf(t *testing.T, i *artefacttest.Image, edit func(*Policy)) *Store {
	t.Helper()
	floor, err := manifest.OpenFloor(filepath.Join(t.TempDir(), "floor"))
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{Trust: i.Trust()}
	if edit != nil {
		edit(&p)
	}
	return NewStore(i.Dir, p, floor, time.Now)
}

func read(t *testing.T, img *Image, name string, offset, length int64) []byte {
	t.Helper()
	var got bytes.Buffer
	if err := img.Chunks(name, offset, length, func(b []byte) error { got.Write(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return got.Bytes()
}

func TestServesExactlyWhatTheManifestDescribes(t *testing.T) {
	i := artefacttest.New(t, nil)
	img, change, err := storeOf(t, i, nil).Current()
	if err != nil || change != Loaded {
		t.Fatal(change, err)
	}
	for name, want := range i.Content {
		size := int64(len(want))
		for _, r := range [][2]int64{{0, size}, {0, 0}, {size, 0}, {1, size - 1}, {1<<20 - 1, 2}, {1 << 20, 1}, {size - 1, 1}, {700_000, 900_001 - 700_000}} {
			if r[0]+r[1] > size {
				continue
			}
			if got := read(t, img, name, r[0], r[1]); !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
				t.Errorf("%s: bytes %d+%d differ", name, r[0], r[1])
			}
		}
		for _, r := range [][2]int64{{-1, 1}, {0, size + 1}, {size + 1, 0}, {1, -1}, {1, 1<<63 - 1}} {
			if _, err := img.Reader(name, r[0], r[1]); err == nil {
				t.Errorf("%s: range %d+%d was accepted", name, r[0], r[1])
			}
		}
	}
	if _, err := img.Reader("../etc/passwd", 0, 0); err == nil {
		t.Error("a name from nowhere was accepted")
	}
}

func TestInvariant02_ByteChangedOnDiskBeforeTheLoadIsRefused(t *testing.T) {
	for _, name := range []string{manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root, manifest.Envelope} {
		t.Run(name, func(t *testing.T) {
			i := artefacttest.New(t, nil)
			i.Flip(t, name, 200)
			img, change, err := storeOf(t, i, nil).Current()
			if img != nil || change != Refused {
				t.Fatalf("image %v, change %v: a changed byte was accepted", img, change)
			}
			if reason := Reason(err); name != manifest.Envelope && reason != manifest.ReasonArtefact {
				t.Errorf("reason %s (%v)", reason, err)
			}
		})
	}
}

func TestInvariant02_ByteChangedOnDiskAfterTheLoadIsNeverServed(t *testing.T) {
	i := artefacttest.New(t, nil)
	s := storeOf(t, i, nil)
	img, _, err := s.Current()
	if err != nil {
		t.Fatal(err)
	}
	i.Flip(t, manifest.Root, 4096)
	if got := read(t, img, manifest.Root, 0, int64(len(i.Content[manifest.Root]))); !bytes.Equal(got, i.Content[manifest.Root]) {
		t.Error("the changed byte came through")
	}
	if next, change, err := s.Current(); next != nil || change != Refused || Reason(err) != manifest.ReasonArtefact {
		t.Errorf("the next boot got %v, %v, %v", next, change, err)
	}
	if next, change, _ := s.Current(); next != nil || change != Unchanged {
		t.Error("the same refusal was reported twice")
	}
	i.Flip(t, manifest.Root, 4096) // back again
	if next, change, err := s.Current(); next == nil || change != Loaded {
		t.Errorf("a directory that was put right stays refused: %v", err)
	}
}

func TestInvariant02_ByteChangedInMemoryIsNotHandedOut(t *testing.T) {
	i := artefacttest.New(t, nil)
	img, _, err := storeOf(t, i, nil).Current()
	if err != nil {
		t.Fatal(err)
	}
	// Sealed memory cannot be changed, so a memory that can stands in for it.
	changed := append([]byte(nil), i.Content[manifest.UKI]...)
	changed[2<<20+5] ^= 1
	img = img.WithSource(manifest.UKI, bytes.NewReader(changed))
	var got bytes.Buffer
	err = img.Chunks(manifest.UKI, 0, int64(len(changed)), func(b []byte) error { got.Write(b); return nil })
	var refused *manifest.Error
	if !errors.As(err, &refused) || refused.Reason != manifest.ReasonArtefact {
		t.Fatalf("error %v", err)
	}
	if !bytes.Equal(got.Bytes(), i.Content[manifest.UKI][:2<<20]) {
		t.Errorf("%d bytes were handed out, only the two chunks before may be", got.Len())
	}
}

func TestRefusedImagesHaveTypedReasons(t *testing.T) {
	_, stranger, _ := ed25519.GenerateKey(nil)
	tests := map[string]struct {
		edit   func(*manifest.Manifest)
		policy func(*Policy)
		damage func(*testing.T, *artefacttest.Image)
		want   string
	}{
		"wrong signature": {policy: func(p *Policy) {
			p.Trust.ReleaseKeys = []ed25519.PublicKey{stranger.Public().(ed25519.PublicKey)}
		}, want: manifest.ReasonSignature},
		"old version":      {policy: func(p *Policy) { p.Floor = 8 }, want: manifest.ReasonVersion},
		"passed date":      {edit: func(m *manifest.Manifest) { m.NotAfter = m.NotBefore.Add(time.Minute) }, want: manifest.ReasonExpired},
		"future date":      {edit: func(m *manifest.Manifest) { m.NotBefore = m.NotAfter.Add(-time.Minute) }, want: manifest.ReasonNotYet},
		"lab channel":      {edit: func(m *manifest.Manifest) { m.LabChannel = true }, want: ReasonLab},
		"missing artefact": {damage: func(t *testing.T, i *artefacttest.Image) { os.Remove(i.Dir + "/" + manifest.Root) }, want: ReasonUnreadable},
		"a link in its place": {damage: func(t *testing.T, i *artefacttest.Image) {
			os.Rename(i.Dir+"/"+manifest.Root, i.Dir+"/elsewhere")
			os.Symlink("elsewhere", i.Dir+"/"+manifest.Root)
		}, want: ReasonUnreadable},
		"a directory in its place": {damage: func(t *testing.T, i *artefacttest.Image) {
			os.Remove(i.Dir + "/" + manifest.Kernel)
			os.Mkdir(i.Dir+"/"+manifest.Kernel, 0o755)
		}, want: ReasonUnreadable},
		"longer": {damage: func(t *testing.T, i *artefacttest.Image) {
			os.Truncate(i.Dir+"/"+manifest.Initrd, int64(len(i.Content[manifest.Initrd])+1))
		}, want: manifest.ReasonArtefact},
		"shorter":      {damage: func(t *testing.T, i *artefacttest.Image) { os.Truncate(i.Dir+"/"+manifest.Initrd, 10) }, want: manifest.ReasonArtefact},
		"no directory": {damage: func(t *testing.T, i *artefacttest.Image) { os.RemoveAll(i.Dir) }, want: ReasonUnreadable},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			i := artefacttest.New(t, tt.edit)
			if tt.damage != nil {
				tt.damage(t, i)
			}
			img, change, err := storeOf(t, i, tt.policy).Current()
			if img != nil || change != Refused || Reason(err) != tt.want {
				t.Errorf("image %v, change %v, error %v; want %s", img != nil, change, err, tt.want)
			}
		})
	}
}

func TestOlderImageCannotComeBack(t *testing.T) {
	i := artefacttest.New(t, nil) // version 7
	s := storeOf(t, i, nil)
	if _, _, err := s.Current(); err != nil {
		t.Fatal(err)
	}
	i.Sign(t, func(m *manifest.Manifest) { m.Version = 6 })
	if _, change, err := s.Current(); change != Refused || Reason(err) != manifest.ReasonVersion {
		t.Errorf("version 6 after 7: %v, %v", change, err)
	}
	i.Sign(t, func(m *manifest.Manifest) { m.Version = 8 })
	if img, change, err := s.Current(); change != Loaded || img.Manifest.Version != 8 {
		t.Errorf("version 8 after 7: %v, %v", change, err)
	}
}

func TestImageExpiresWhileItIsLoaded(t *testing.T) {
	i := artefacttest.New(t, nil)
	s := storeOf(t, i, nil)
	if _, _, err := s.Current(); err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	if img, change, err := s.Current(); img != nil || change != Refused || Reason(err) != manifest.ReasonExpired {
		t.Errorf("%v, %v, %v", img, change, err)
	}
}

func TestReadersShareAnImage(t *testing.T) {
	i := artefacttest.New(t, nil)
	img, _, err := storeOf(t, i, nil).Current()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := img.Reader(manifest.Root, 0, int64(len(i.Content[manifest.Root])))
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, i.Content[manifest.Root]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	if err := img.Chunks(manifest.Root, 0, 1, func([]byte) error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if !strings.Contains(Reason(err), "image-unreadable") {
		t.Error("an unknown error needs a reason too")
	}
}
