package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	. "portcullis/verifier/image/imagetest"
)

// tarWithLink packs files, one of them as a symbolic link.
func tarWithLink(t *testing.T, files Files, name, to string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, data := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o644, Size: int64(len(data))}
		if n == name {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, to, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func freshBudget() *budget {
	return &budget{limits: Limits{}.filled(), links: map[[sha256.Size]byte]bool{}}
}

func file(name string, size int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
}

func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func link(kind byte, name, to string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: to}
}

func TestAttack_LayersThatAreRefused(t *testing.T) {
	const sym, hard = tar.TypeSymlink, tar.TypeLink
	pax := func(key, value string) tar.Header {
		h := file("a", 0)
		h.PAXRecords = map[string]string{key: value}
		return h
	}
	for _, c := range []struct {
		name, reason string
		entries      []tar.Header
	}{
		{"an ordinary one", "", []tar.Header{dir("./"), dir("etc/"), file("./etc/a", 3), link(sym, "etc/b", "a"), link(sym, "etc/c", "/etc/../a"), link(hard, "etc/d", "etc/a"), file(".wh.gone", 0), file("etc/.wh..wh..opq", 0)}},
		{"an absolute name", ReasonName, []tar.Header{file("/etc/passwd", 1)}},
		{"a name that leads out", ReasonName, []tar.Header{file("../x", 1)}},
		{"a name that leads out later", ReasonName, []tar.Header{file("a/../../x", 1)}},
		{"a name that is not clean", ReasonName, []tar.Header{file("a//b", 1)}},
		{"a name with a dot", ReasonName, []tar.Header{file("a/./b", 1)}},
		{"no name", ReasonName, []tar.Header{file(".", 0)}},
		{"a control character", ReasonName, []tar.Header{file("a\x1bb", 1)}},
		{"a name that is no UTF-8", ReasonName, []tar.Header{{Typeflag: tar.TypeReg, Name: "a\xffb", Format: tar.FormatGNU}}},
		{"a name too long", ReasonName, []tar.Header{file(strings.Repeat("a/", 2048)+"a", 0)}},
		{"a file twice", ReasonDuplicate, []tar.Header{file("a", 1), file("a", 2)}},
		{"a file twice, spelt differently", ReasonDuplicate, []tar.Header{file("a", 1), file("./a", 2)}},
		{"a file and a directory", ReasonDuplicate, []tar.Header{file("a", 1), dir("a/")}},
		{"a file and its whiteout", ReasonDuplicate, []tar.Header{file("a", 1), file(".wh.a", 0)}},
		{"a name through a link", ReasonLink, []tar.Header{link(sym, "a", "etc"), file("a/passwd", 1)}},
		{"a name through a file", ReasonLink, []tar.Header{file("a", 1), file("a/b", 1)}},
		{"a link in the place of a directory", ReasonLink, []tar.Header{file("a/b", 1), link(sym, "a", "etc")}},
		{"a whiteout in the place of a directory", ReasonLink, []tar.Header{file("a/b", 1), file(".wh.a", 0)}},
		{"a link out", ReasonLink, []tar.Header{link(sym, "a/b", "../../etc/passwd")}},
		{"an absolute link out", ReasonLink, []tar.Header{link(sym, "a", "/../etc/passwd")}},
		{"a link to nothing", ReasonLink, []tar.Header{link(sym, "a", "b\x00")}},
		{"a hard link out", ReasonLink, []tar.Header{link(hard, "a", "../etc/passwd")}},
		{"an absolute hard link", ReasonLink, []tar.Header{link(hard, "a", "/etc/passwd")}},
		{"a hard link to a later file", ReasonLink, []tar.Header{link(hard, "a", "b"), file("b", 1)}},
		{"a hard link to a link", ReasonLink, []tar.Header{link(sym, "a", "/etc/passwd"), link(hard, "b", "a")}},
		{"a hard link to a directory", ReasonLink, []tar.Header{dir("a"), link(hard, "b", "a")}},
		{"an owner that no file can have", ReasonType, []tar.Header{{Typeflag: tar.TypeReg, Name: "a", Uid: 1<<32 - 1, Format: tar.FormatPAX}}},
		{"a group that is cut to that of root", ReasonType, []tar.Header{{Typeflag: tar.TypeReg, Name: "a", Gid: 1 << 32, Format: tar.FormatPAX}}},
		{"a negative owner", ReasonType, []tar.Header{{Typeflag: tar.TypeReg, Name: "a", Uid: -1, Format: tar.FormatGNU}}},
		{"a device", ReasonType, []tar.Header{{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8}}},
		{"a device of characters", ReasonType, []tar.Header{{Typeflag: tar.TypeChar, Name: "mem", Devmajor: 1}}},
		{"a pipe", ReasonType, []tar.Header{{Typeflag: tar.TypeFifo, Name: "p"}}},
		{"a whiteout with content", ReasonType, []tar.Header{file(".wh.a", 1)}},
		{"a whiteout of the directory above", ReasonName, []tar.Header{file("a/.wh...", 0)}},
		{"a whiteout of a whiteout", ReasonName, []tar.Header{file(".wh..wh.a", 0)}},
		{"an attribute of overlayfs", ReasonType, []tar.Header{pax("SCHILY.xattr.trusted.overlay.redirect", "/etc")}},
		{"an attribute of unprivileged overlayfs", ReasonType, []tar.Header{pax("SCHILY.xattr.user.overlay.opaque", "y")}},
	} {
		var data []byte
		if c.name == "a link to nothing" { // the writer would cut it
			data = Tar(t, link(sym, "a", "b\x07"))
		} else {
			data = Tar(t, c.entries...)
		}
		_, err := readTar(bytes.NewReader(data), freshBudget())
		if Reason(err) != c.reason || c.reason == "" && err != nil {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
	}
	for name, data := range map[string][]byte{
		"a sparse file":     sparse(t),
		"cut off":           Tar(t, file("a", 5000))[:2000],
		"a damaged header":  flip(Tar(t, file("a", 1)), 150),
		"data after itself": append(Tar(t, file("a", 1)), Tar(t, file("b", 1))...),
	} {
		g := freshBudget()
		r := bytes.NewReader(data)
		_, err := readTar(r, g)
		if err == nil {
			err = onlyZeros(r)
		}
		if Reason(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// sparse is a PAX sparse file: 1 MiB without a byte of data.
func sparse(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := file("GNUSparseFile.0/s", 6)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: h.Name, Size: 6, Mode: 0o644, PAXRecords: map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.realsize": "1048576", "XXX.sparse.name": "s"}}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "0\n0\n0\n")
	w.Close()
	// The writer refuses GNU.sparse itself.
	return bytes.ReplaceAll(b.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))
}

// A link that a lower layer has made is one for the layers above it.
func TestAttack_NameThroughALinkOfALowerLayer(t *testing.T) {
	g := freshBudget()
	read := func(entries ...tar.Header) error {
		_, err := readTar(bytes.NewReader(Tar(t, entries...)), g)
		return err
	}
	if err := read(link(tar.TypeSymlink, "lib", "usr/lib")); err != nil {
		t.Fatal(err)
	}
	if err := read(file("lib/x", 1)); Reason(err) != ReasonLink {
		t.Errorf("through the link: %v", err)
	}
	if err := read(file(".wh.lib", 0)); err != nil {
		t.Fatal(err)
	}
	if err := read(dir("lib"), file("lib/x", 1)); err != nil {
		t.Errorf("the link is gone: %v", err)
	}
}

// What is in a header is in the list, and the order in the archive is not.
func TestTreeHasEverything(t *testing.T) {
	list := func(entries ...tar.Header) string {
		t.Helper()
		tree, err := readTar(bytes.NewReader(Tar(t, entries...)), freshBudget())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%+v", slices.Collect(tree.Files()))
	}
	seen := map[string]string{}
	for name, change := range map[string]func(h *tar.Header){
		"nothing": func(*tar.Header) {}, "name": func(h *tar.Header) { h.Name = "d" }, "mode": func(h *tar.Header) { h.Mode = 0o4755 },
		"owner": func(h *tar.Header) { h.Uid = 1<<32 - 2 }, "group": func(h *tar.Header) { h.Gid = 1 }, "content": func(h *tar.Header) { h.Size = 5 },
		"kind": func(h *tar.Header) { h.Typeflag, h.Size = tar.TypeDir, 0 }, "link": func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "b", 0 },
		"attribute": func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01"}
		},
	} {
		h := file("a", 3)
		change(&h)
		l := list(h, file("b", 4), dir("c"))
		if other, twice := seen[l]; twice {
			t.Errorf("%s and %s are one list", name, other)
		}
		seen[l] = name
	}
	if one := list(file("a", 1), file("b", 2)); one != list(file("b", 2), file("a", 1)) || !strings.HasPrefix(one, "[{Path:a ") {
		t.Error("the order in the archive matters")
	}
}

// An image of a few MiB packed must not cost all memory by its names alone.
func TestAttack_NamesThatTakeAllMemory(t *testing.T) {
	attribute := file("c", 0)
	attribute.PAXRecords = map[string]string{"SCHILY.xattr.user.a": strings.Repeat("a", 400)}
	for name, c := range map[string]struct {
		limits  Limits
		entries []tar.Header // the last is too much
	}{
		"directories that are not named": {Limits{Implied: 100}, []tar.Header{file(strings.Repeat("a/", 100)+"a", 0), dir("b"), file("b/c", 0), file("c/a", 0)}},
		"long names":                     {Limits{Text: 1000}, []tar.Header{file(strings.Repeat("a", 500), 0), file(strings.Repeat("b", 500), 0), file("c", 0)}},
		"long links":                     {Limits{Text: 1000}, []tar.Header{link(tar.TypeSymlink, "a", strings.Repeat("a", 600)), link(tar.TypeSymlink, "b", strings.Repeat("a", 400))}},
		"attributes":                     {Limits{Text: 1000}, []tar.Header{file(strings.Repeat("a", 600), 0), attribute}},
	} {
		for n, want := range map[int]string{len(c.entries) - 1: "", len(c.entries): ReasonTooLarge} {
			g := freshBudget()
			g.limits = c.limits.filled()
			if _, err := readTar(bytes.NewReader(Tar(t, c.entries[:n]...)), g); Reason(err) != want || want == "" && err != nil {
				t.Errorf("%d %s: %v, want %q", n, name, err, want)
			}
		}
	}
}

// table is a layer's names as they were kept before: as Files, in tables of texts.
type table struct {
	files   []File
	at      map[string]int
	parents map[string]bool
	links   map[string]bool // of the layers below as well
}

func (t *table) place(f File) string {
	key := f.Path
	if f.Kind == KindOpaque {
		key += "/"
	} else if f.Kind != KindDir && t.parents[f.Path] {
		return ReasonLink
	}
	if _, twice := t.at[key]; twice {
		return ReasonDuplicate
	}
	dir := path.Dir(f.Path)
	if f.Kind == KindOpaque {
		dir = f.Path
	}
	for ; dir != "."; dir = path.Dir(dir) {
		if i, ok := t.at[dir]; ok && t.files[i].Kind != KindDir || !ok && t.links[dir] {
			return ReasonLink
		}
		t.parents[dir] = true
	}
	t.at[key] = len(t.files)
	t.files = append(t.files, f)
	if f.Kind == KindLink {
		t.links[f.Path] = true
	} else if f.Kind != KindOpaque {
		delete(t.links, f.Path)
	}
	return ""
}

// Names are taken, refused and listed as by a table of Files, layer for layer: the lists of images
// that were loaded before are found by their digests. Each byte of data is a name of few, and a
// kind; 0xff begins the next layer.
func FuzzTreeIsThatOfATable(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 0xff, 8, 9, 10, 11, 12})
	noise := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		b := make([]byte, 1+noise.IntN(40))
		for i := range b {
			b[i] = byte(noise.Uint32())
		}
		f.Add(b)
	}
	paths := []string{".", "a", "a-b", "a/b", "a/b/c", "a/b-", "b", "b/a", "a/b/c/d", "c"}
	kinds := []byte{KindFile, KindDir, KindLink, KindWhiteout, KindOpaque}
	f.Fuzz(func(t *testing.T, data []byte) {
		g, links := freshBudget(), map[string]bool{}
		for n, layer := range bytes.Split(data, []byte{0xff}) {
			tree, old := newTree(g), table{at: map[string]int{}, parents: map[string]bool{}, links: links}
			for i, b := range layer {
				x := File{Path: paths[int(b)%len(paths)], Kind: kinds[int(b)/len(paths)%len(kinds)], Mode: uint32(b), UID: i, GID: n, Size: int64(i) << 33}
				x.Sum[31] = b
				if x.Kind == KindLink {
					x.Link = strings.Repeat("l", i+1)
				}
				if b&128 != 0 {
					x.Xattrs = strings.Repeat("x", i)
				}
				want := old.place(x)
				if got := Reason(tree.place(x)); got != want {
					t.Fatalf("layer %d: %c %s: %q, before %q", n, x.Kind, x.Path, got, want)
				} else if got != "" {
					return
				}
			}
			slices.SortFunc(old.files, func(a, b File) int {
				return cmp.Or(strings.Compare(a.Path, b.Path), int(a.Kind)-int(b.Kind))
			})
			if got := slices.Collect(tree.done().Files()); !slices.Equal(got, old.files) || tree.Len() != len(got) {
				t.Fatalf("layer %d: %v\nbefore %v", n, got, old.files)
			}
		}
	})
}

func FuzzLayer(f *testing.F) {
	for _, l := range [][]byte{
		Tar(f, dir("etc/"), file("etc/a", 3), link(tar.TypeSymlink, "b", "etc/a"), link(tar.TypeLink, "c", "etc/a"), file(".wh.x", 0)),
		Gzip(f, Tar(f, file("a", 1))), {}, make([]byte, 1024), {0x28, 0xb5, 0x2f, 0xfd},
	} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g := &budget{limits: Limits{Unpacked: 1 << 20, Entries: 1000}.filled(), links: map[[sha256.Size]byte]bool{}, total: int64(len(data))}
		l := Layer{}
		l.DiffID = "sha256:none"
		err := l.read(context.Background(), &blob{ReaderAt: bytes.NewReader(data), size: int64(len(data))}, g)
		if err == nil || Reason(err) == "" {
			t.Fatalf("no typed reason: %v", err)
		}
		if l.Tree == nil {
			return
		}
		files := slices.Collect(l.Tree.Files())
		for i, file := range files {
			if file.Path != "." && (strings.HasPrefix(file.Path, "/") || strings.HasPrefix(file.Path, "..") || strings.Contains(file.Path, "/../")) {
				t.Fatalf("the name %q", file.Path)
			}
			if i > 0 && files[i-1].Path == file.Path && files[i-1].Kind == file.Kind {
				t.Fatalf("%q twice", file.Path)
			}
		}
	})
}

func FuzzIndex(f *testing.F) {
	files := OCI(f, OneFile(f, "a", "one"))
	f.Add(files["index.json"])
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:","size":1}]}`))
	f.Add([]byte(`[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]`))
	for name, b := range files {
		if strings.HasPrefix(name, "blobs/") && b[0] == '{' {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a := &Archive{manifest: data, manifestType: ManifestType}
		if err := a.parseManifest(emptySource{}, nil); err != nil && Reason(err) == "" {
			t.Fatalf("no reason: %v", err)
		}
		if d, err := choose(emptySource{}, data, "", 0); err != nil && Reason(err) == "" {
			t.Fatalf("%+v: no reason: %v", d, err)
		}
		a = &Archive{config: data, Layers: make([]Layer, 1)}
		if err := a.parseConfig(nil); err != nil && Reason(err) == "" {
			t.Fatalf("no reason: %v", err)
		}
	})
}

// emptySource has no file.
type emptySource struct{}

func (emptySource) open(string) (*blob, error) { return nil, fs.ErrNotExist }
func (emptySource) Close() error               { return nil }
