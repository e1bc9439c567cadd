package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
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

func freshBudget() *budget { return &budget{limits: Limits{}.filled(), links: map[string]bool{}} }

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

func TestTreeCommitsToEverything(t *testing.T) {
	root := func(change func(h *tar.Header)) string {
		t.Helper()
		h := file("a", 3)
		change(&h)
		tree, err := readTar(bytes.NewReader(Tar(t, h, file("b", 4), dir("c"))), freshBudget())
		if err != nil {
			t.Fatal(err)
		}
		return tree.Root
	}
	seen := map[string]string{}
	for name, change := range map[string]func(h *tar.Header){
		"nothing": func(*tar.Header) {}, "name": func(h *tar.Header) { h.Name = "d" }, "mode": func(h *tar.Header) { h.Mode = 0o4755 },
		"owner": func(h *tar.Header) { h.Uid = 1 }, "group": func(h *tar.Header) { h.Gid = 1 }, "content": func(h *tar.Header) { h.Size = 5 },
		"kind": func(h *tar.Header) { h.Typeflag, h.Size = tar.TypeDir, 0 }, "link": func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "b", 0 },
		"attribute": func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01"}
		},
	} {
		r := root(change)
		if other, twice := seen[r]; twice {
			t.Errorf("%s and %s have one root", name, other)
		}
		seen[r] = name
	}
	one, _ := readTar(bytes.NewReader(Tar(t, file("a", 1), file("b", 2))), freshBudget())
	two, _ := readTar(bytes.NewReader(Tar(t, file("b", 2), file("a", 1))), freshBudget())
	if one.Root != two.Root || one.Files[0].Path != "a" {
		t.Error("the order in the archive matters")
	}
}

func FuzzLayer(f *testing.F) {
	for _, l := range [][]byte{
		Tar(f, dir("etc/"), file("etc/a", 3), link(tar.TypeSymlink, "b", "etc/a"), link(tar.TypeLink, "c", "etc/a"), file(".wh.x", 0)),
		Gzip(f, Tar(f, file("a", 1))), {}, make([]byte, 1024), {0x28, 0xb5, 0x2f, 0xfd},
	} {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g := &budget{limits: Limits{Unpacked: 1 << 20, Entries: 1000}.filled(), links: map[string]bool{}, total: int64(len(data))}
		l := Layer{}
		l.DiffID = "sha256:none"
		err := l.read(context.Background(), &blob{bytes.NewReader(data), int64(len(data)), nil}, g)
		if err == nil || Reason(err) == "" {
			t.Fatalf("no typed reason: %v", err)
		}
		if l.Tree == nil {
			return
		}
		for i, file := range l.Tree.Files {
			if file.Path != "." && (strings.HasPrefix(file.Path, "/") || strings.HasPrefix(file.Path, "..") || strings.Contains(file.Path, "/../")) {
				t.Fatalf("the name %q", file.Path)
			}
			if i > 0 && l.Tree.Files[i-1].Path == file.Path && l.Tree.Files[i-1].Kind == file.Kind {
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
