package image

import (
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "portcullis/verifier/image/imagetest"
)

// counted is a source that counts how often each file is opened, and how many bytes are read of it.
type counted struct {
	source
	opened map[string]int
	bytes  map[string]*int64
}

func newCounted(s source) *counted {
	return &counted{source: s, opened: map[string]int{}, bytes: map[string]*int64{}}
}

type countedReader struct {
	io.ReaderAt
	n *int64
}

func (c countedReader) ReadAt(p []byte, at int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, at)
	*c.n += int64(n)
	return n, err
}

func (c *counted) open(name string) (*blob, error) {
	b, err := c.source.open(name)
	if err != nil {
		return nil, err
	}
	c.opened[name]++
	if c.bytes[name] == nil {
		c.bytes[name] = new(int64)
	}
	b.ReaderAt = countedReader{b.ReaderAt, c.bytes[name]}
	return b, nil
}

// Each file of an image is opened once, and each byte of a layer is read once, for all its digests:
// packed, unpacked, and of each file in it. Of an archive that comes as a stream a layer is read while
// it comes, and not again.
func TestEachByteIsReadOnce(t *testing.T) {
	random := make([]byte, 300_000)
	rand.Read(random)
	big := string(random)
	f := OCI(t, OneFile(t, "probe", big), OneFile(t, "other", big+"!"))
	archive := f.File(t)
	look := func(what string, s source, known map[int64]*contents, times int64) {
		t.Helper()
		c := newCounted(s)
		a, err := read(t.Context(), c, Options{}, known)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if len(a.Layers) != 2 {
			t.Fatalf("%s: %d layers", what, len(a.Layers))
		}
		for _, l := range a.Layers {
			if got := *c.bytes[l.file]; got != times*l.Size {
				t.Errorf("%s: of the %d bytes of %s %d were read", what, l.Size, l.file, got)
			}
		}
		for name, n := range c.opened {
			if n != 1 && strings.HasPrefix(name, "blobs/") {
				t.Errorf("%s: %s was opened %d times", what, name, n)
			}
		}
	}
	for what, path := range map[string]string{"a directory": f.Dir(t), "an archive": archive} {
		s, err := openSource(path)
		if err != nil {
			t.Fatal(err)
		}
		look(what, s, nil, 1)
	}
	from, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	s, known, err := takeIn(t.Context(), from, to, Options{})
	if err != nil {
		t.Fatal(err)
	}
	look("a stream, when it is there", s, known, 0)
}
