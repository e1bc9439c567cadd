package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/verifier/approval"
	. "portcullis/verifier/image/imagetest"
)

// inOrder packs files in an order of its own.
func inOrder(t testing.TB, f Files, names []string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(f[name]))})
		if err == nil {
			_, err = w.Write(f[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// told is all that is told of an image that is read, or of its refusal.
func told(a *Archive, err error) string {
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%+v %s %s\n", a.Image(), a.Platform, a.User)
	for _, l := range a.Layers {
		fmt.Fprintf(&b, "%s %s %d %d %s\n%v\n", l.Digest, l.DiffID, l.Size, l.Unpacked, l.MediaType, slices.Collect(l.Tree.Files()))
	}
	return b.String()
}

// same reads files in several orders, as a stream and as an archive that lies there, which is the
// same image or the same refusal. It returns what was told.
func same(t testing.TB, what string, f Files, o Options) string {
	t.Helper()
	names := slices.Sorted(maps.Keys(f))
	back := slices.Clone(names)
	slices.Reverse(back)
	var last string
	for i, names := range [][]string{names, back} {
		b := inOrder(t, f, names)
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := Open(t.Context(), path, o)
		want := told(a, err)
		if err == nil {
			a.Close()
		}
		a, err = Read(t.Context(), bytes.NewReader(b), t.TempDir(), o)
		if last = told(a, err); last != want {
			t.Errorf("%s, order %d: %s, want %s", what, i, last, want)
		}
		if err == nil {
			a.Close()
		}
	}
	return last
}

// Layers that depend on each other by their links, whatever order they come in.
func TestStreamIsReadAsAFile(t *testing.T) {
	sym, reg := byte(tar.TypeSymlink), func(name string) tar.Header { return file(name, 3) }
	for _, c := range []struct {
		name, reason string
		layers       [][]tar.Header
		o            Limits
	}{
		{"a name through a link of a lower layer", ReasonLink, [][]tar.Header{{link(sym, "a", "b")}, {reg("a/x")}}, Limits{}},
		{"through one of two layers below", ReasonLink, [][]tar.Header{{link(sym, "a", "b")}, {reg("c")}, {reg("a/x/y")}}, Limits{}},
		{"the link comes above", "", [][]tar.Header{{reg("b/x")}, {link(sym, "a", "b")}}, Limits{}},
		{"the link was replaced by a directory", "", [][]tar.Header{{link(sym, "a", "b")}, {dir("a/")}, {reg("a/x")}}, Limits{}},
		{"and became one again", ReasonLink, [][]tar.Header{{link(sym, "a", "b")}, {dir("a/")}, {file(".wh.a", 0)}, {link(sym, "a", "b")}, {reg("a/x")}}, Limits{}},
		{"the link was taken away", "", [][]tar.Header{{link(sym, "a", "b")}, {file(".wh.a", 0)}, {reg("a/x")}}, Limits{}},
		{"the directory is named behind what is in it", ReasonLink, [][]tar.Header{{link(sym, "a", "b")}, {reg("a/x"), dir("a/")}}, Limits{}},
		{"a directory that hides", ReasonLink, [][]tar.Header{{link(sym, "a", "b")}, {file("a/.wh..wh..opq", 0)}}, Limits{}},
		{"names of all layers", ReasonTooLarge, [][]tar.Header{{reg("a"), reg("b")}, {reg("c"), reg("d")}}, Limits{Entries: 3}},
		{"as many names as there may be", "", [][]tar.Header{{reg("a"), reg("b")}, {reg("c"), reg("d")}}, Limits{Entries: 4}},
		{"bytes of all layers", ReasonTooLarge, [][]tar.Header{{reg("a")}, {reg("c")}}, Limits{Unpacked: 4095}},
		{"as many bytes as there may be", "", [][]tar.Header{{reg("a")}, {reg("c")}}, Limits{Unpacked: 4096}},
		{"a device", ReasonType, [][]tar.Header{{reg("a")}, {{Typeflag: tar.TypeChar, Name: "null"}}}, Limits{}},
	} {
		var layers [][]byte
		for _, l := range c.layers {
			layers = append(layers, Tar(t, l...))
		}
		for form, f := range map[string]Files{"layout": OCI(t, layers...), "saved": Saved(t, layers...)} {
			got := same(t, c.name+", "+form, f, Options{Limits: c.o})
			if c.reason == "" && !strings.HasPrefix(got, "{") || c.reason != "" && !strings.Contains(got, c.reason+": ") {
				t.Errorf("%s, %s: %s, want %q", c.name, form, got, c.reason)
			}
		}
	}
}

// Of more names than are noted nothing is taken that depends on them.
func TestMoreNamesThanAreNoted(t *testing.T) {
	var many []tar.Header
	for i := range maxNoted {
		many = append(many, tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i), Mode: 0o644})
	}
	and := func(h tar.Header) []byte { return Tar(t, append(many[:maxNoted:maxNoted], h)...) }
	sym, inside := link(tar.TypeSymlink, "a", "b"), Tar(t, file("a/x", 0))
	for _, c := range []struct {
		name, reason string
		layers       [][]byte
	}{
		{"a link", ReasonLink, [][]byte{and(sym), inside}},
		{"a directory in the place of a link", "", [][]byte{Tar(t, sym), and(dir("a/")), inside}},
		{"a name that lies in a link", ReasonLink, [][]byte{Tar(t, sym), and(file("a/x", 0))}},
	} {
		f := Saved(t, c.layers...)
		names := slices.Sorted(maps.Keys(f))
		slices.Reverse(names) // those of the highest layer are noted first
		a, err := Read(t.Context(), bytes.NewReader(inOrder(t, f, names)), t.TempDir(), Options{})
		if Reason(err) != c.reason || c.reason == "" && err != nil {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
		if err == nil {
			a.Close()
		}
	}
}

// TestAttack_NoMoreIsReadThanAnImageMayHave: of an archive that is full of what may be layers.
func TestAttack_NoMoreIsReadThanAnImageMayHave(t *testing.T) {
	f, names := Files{}, []string(nil)
	for i := range approval.MaxLayers + 3 {
		names = append(names, fmt.Sprint(i))
		f[names[i]] = Tar(t, file(names[i], 3)) // 2048 bytes
	}
	for want, l := range map[int]Limits{approval.MaxLayers: {}, 5: {Entries: 5}, 2: {Unpacked: 5000}} {
		read := 0
		_, err := Read(t.Context(), bytes.NewReader(inOrder(t, f, names)), t.TempDir(), Options{Limits: l, Layer: func(*Layer) error { read++; return nil }})
		if Reason(err) != ReasonFormat || read != want {
			t.Errorf("%+v: %d were read, want %d; %v", l, read, want, err)
		}
	}
}

// Many small layers that are packed tightly are refused by what all of them are, as they are in a file.
func TestBombsOfAStream(t *testing.T) {
	zeros := Tar(t, file("a", 40<<20))
	var files Files
	for _, n := range []int{1, 2} {
		files = OCI(t, slices.Repeat([][]byte{OneFile(t, "b", "x"), zeros}, n)...)
		got := same(t, fmt.Sprint(n), files, Options{})
		if refused := strings.Contains(got, ReasonTooLarge); refused != (n == 2) {
			t.Errorf("%d: %.200s", n, got)
		}
	}
}

// held is a stream that goes on when it may.
type held struct {
	io.Reader
	rest  io.Reader
	goOn  chan struct{}
	limit time.Duration
	late  bool
}

func (h *held) Read(b []byte) (int, error) {
	n, err := h.Reader.Read(b)
	if h.rest == nil || !errors.Is(err, io.EOF) {
		return n, err
	}
	select {
	case <-h.goOn:
	case <-time.After(h.limit):
		h.late = true
	}
	h.Reader, h.rest = h.rest, nil
	return n, nil
}

// The layers of an archive were read, each once, when the manifest comes, which says in which order
// they are; links or not, packed or not.
func TestLayersAreReadWhileTheyCome(t *testing.T) {
	layers := [][]byte{
		Tar(t, dir("usr/"), link(tar.TypeSymlink, "bin", "usr"), link(tar.TypeSymlink, "lib", "usr"), file("usr/a", 9000)),
		Tar(t, dir("lib/"), file("usr/b", 9000)), Tar(t, file("lib/c", 9000)),
	}
	for form, f := range map[string]Files{"layout": OCI(t, layers...), "saved": Saved(t, layers...)} {
		// What was taken in shows in pieces: this is behind the layers, and more than one.
		f["pad"] = make([]byte, 2*copySize)
		names := slices.Sorted(maps.Keys(f))
		isTop := func(n string) bool { return !strings.HasPrefix(n, "blobs/") && !strings.HasSuffix(n, "/layer.tar") }
		slices.SortStableFunc(names, func(a, b string) int { return map[bool]int{true: 1}[isTop(a)] - map[bool]int{true: 1}[isTop(b)] })
		for _, down := range []bool{false, true} {
			n := slices.IndexFunc(names, isTop)
			if down {
				slices.Reverse(names[:n])
			}
			names := append(append(names[:n:n], "pad"), slices.DeleteFunc(slices.Clone(names[n:]), func(n string) bool { return n == "pad" })...)
			archive := inOrder(t, f, names)
			blobs := len(inOrder(t, f, append(names[:n:n], "pad"))) - 1024
			h := &held{Reader: bytes.NewReader(archive[:blobs]), rest: bytes.NewReader(archive[blobs:]), goOn: make(chan struct{}), limit: 10 * time.Second}
			var seen []string
			a, err := Read(t.Context(), h, t.TempDir(), Options{Layer: func(l *Layer) error {
				if seen = append(seen, l.DiffID); len(seen) == len(layers) {
					close(h.goOn)
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			a.Close()
			if want := slices.Sorted(slices.Values(a.Image().Layers)); h.late || !slices.Equal(slices.Sorted(slices.Values(seen)), want) {
				t.Errorf("%s, %t: layers were not read before the rest came, or twice: %v", form, down, seen)
			}
		}
	}
}

// endless is a stream that nobody can read to its end.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// A stream that breaks off is no image, wherever it does, and what is wrong with it is said.
func TestStreamBreaksOff(t *testing.T) {
	f := OCI(t, Tar(t, file("a", 5000)), OneFile(t, "b", "x"))
	b := inOrder(t, f, slices.Sorted(maps.Keys(f)))
	broken := errors.New("broken off")
	for n := 0; n < len(b)-1024; n += 300 {
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(path, b[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		whole, werr := Open(t.Context(), path, Options{})
		a, err := Read(t.Context(), bytes.NewReader(b[:n]), t.TempDir(), Options{})
		if Reason(err) != Reason(werr) || (err == nil) != (werr == nil) {
			t.Errorf("%d bytes: %v, of a file %v", n, err, werr)
		}
		if err == nil && werr == nil { // only what fills the last block is missing
			a.Close()
			whole.Close()
		}
		r := io.MultiReader(bytes.NewReader(b[:n]), errorReader{broken})
		if _, err := Read(t.Context(), r, t.TempDir(), Options{}); !errors.Is(err, broken) {
			t.Errorf("%d bytes and an error: %v", n, err)
		}
	}
}

type errorReader struct{ error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.error }

// Whoever called may live through a panic while a stream is looked at.
func TestPanicComesToTheCaller(t *testing.T) {
	defer func() {
		if recover() != "here" {
			t.Error("it came to nobody")
		}
	}()
	Read(t.Context(), io.MultiReader(bytes.NewReader(Pack(t, OCI(t, OneFile(t, "a", "x")))), endless{}), t.TempDir(), Options{Limits: Limits{Packed: 256 << 20}, Layer: func(*Layer) error { panic("here") }})
}

// FuzzStreamIsAFile: an archive is the same image, or the same refusal, whether it lies there or comes over
// a stream. Each byte of data is a name of few, and a kind; 0xff begins the next layer.
func FuzzStreamIsAFile(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 0xff, 8, 9, 10, 11, 12}, uint16(0), uint8(0))
	f.Add([]byte{22, 0xff, 13, 0xff, 3}, uint16(7), uint8(2))
	f.Add([]byte{22, 23, 25, 0xff, 3, 0xff, 41, 0xff, 13}, uint16(300), uint8(1))
	paths := []string{"a", "a-b", "a/b", "a/b/c", "a/b-", "b", "b/a", "a/b/c/d", "c", "c/.wh.x"}
	f.Fuzz(func(t *testing.T, data []byte, entries uint16, how uint8) {
		var layers [][]byte
		for _, part := range bytes.Split(data, []byte{0xff}) {
			if len(layers) == 5 {
				break
			}
			var all []tar.Header
			for _, b := range part {
				p := paths[int(b)%len(paths)]
				all = append(all, []tar.Header{file(p, int64(b)%5*1000), dir(p + "/"), link(tar.TypeSymlink, p, "x"), link(tar.TypeLink, p, "a"),
					file(filepath.Dir(p)+"/.wh."+filepath.Base(p), 0), file(p+"/.wh..wh..opq", 0)}[int(b)/len(paths)%6])
			}
			layers = append(layers, Tar(t, all...))
		}
		files := OCI(t, layers...)
		if how%2 == 1 {
			files = Saved(t, layers...)
		}
		same(t, "fuzz", files, Options{Limits: Limits{Entries: int(entries), Unpacked: int64(how/2) * 3000}})
	})
}

// No more of a stream is taken in when it is known to be no archive.
func TestAttack_StreamThatIsNoArchive(t *testing.T) {
	b := OneFile(t, "a", "x")
	for _, bad := range [][]byte{bytes.Repeat([]byte("no archive"), 100), append(b[:1024:1024], b...)} {
		_, err := Read(t.Context(), io.MultiReader(bytes.NewReader(bad[:len(bad)/512*512]), endless{}), t.TempDir(), Options{Limits: Limits{Packed: 256 << 20}})
		if r := Reason(err); r != ReasonTar && r != ReasonDuplicate {
			t.Errorf("%v", err)
		}
	}
}
