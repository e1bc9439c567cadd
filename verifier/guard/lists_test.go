package guard

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
	"portcullis/verifier/verity"
)

// listOf is a list that lies in memory.
func listOf(files []image.File) names {
	return func(each func(*image.File) error) error {
		for i := range files {
			if err := each(&files[i]); err != nil {
				return err
			}
		}
		return nil
	}
}

// A list that is written name by name is the one that was written at once before: other images
// share a layer's list, and know its digest.
func TestListIsWrittenAsBefore(t *testing.T) {
	for _, files := range [][]image.File{
		nil, // of a layer without a name
		{{Path: "a", Kind: image.KindFile, Mode: 0o4755, UID: 1, Size: 7, Sum: sumOf([]byte("<&>"))}},
		{{Path: ".", Kind: image.KindDir}, {Path: "<b>&\u2028", Kind: image.KindLink, Link: "\"c\"", Xattrs: `"user.x"="y"`}},
	} {
		want, err := json.Marshal(files)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := writeList(&b, slices.Values(files)); err != nil || b.String() != string(want) {
			t.Errorf("%v: %s, want %s", err, &b, want)
		}
		seen := 0
		err = treeOf{Digest: digestOf(want)}.read(&b, func(*image.File) error { seen++; return nil })
		if err != nil || seen != len(files) {
			t.Errorf("%s: %d names, %v", want, seen, err)
		}
	}
}

// What is looked up in the text of all names is what was found by a table of them.
func TestNamesOfAList(t *testing.T) {
	files := []string{"-x", ".", "a", "a-b", "a/b", "a/b", "a/c.d/e", "a0/f", "b"}
	var l nameList
	for _, name := range files {
		if err := l.add(name); err != nil {
			t.Fatal(err)
		}
	}
	parents := []string{".", "a", "a/c.d", "a0"}
	for _, name := range append([]string{"", "/", "a/", "a/b/", "a/c", "a/c.", "A", "c", "e", "f", "-", "a/c.d/", "a/c.d/e/f"}, append(files, parents...)...) {
		if l.has(name) != slices.Contains(files, name) || l.under(name) != slices.Contains(parents, name) {
			t.Errorf("%q: %t, directory %t", name, l.has(name), l.under(name))
		}
	}
	if err := l.add("a"); err == nil {
		t.Error("a list in another order is taken")
	}
	if new(nameList).has("") || new(nameList).under("a") || !new(nameList).under(".") {
		t.Error("an empty list")
	}
}

// keepList writes the list of a layer that lies in memory.
func (s *state) keepList(diffID string, files []image.File) (treeOf, error) {
	n := newLists{state: s}
	defer n.Close()
	if err := n.write(diffID, slices.Values(files)); err != nil {
		return treeOf{}, err
	}
	trees, err := n.keep([]string{diffID})
	if err != nil {
		return treeOf{}, err
	}
	return trees[0], nil
}

// TestAttack_ListsTakeTheDisk: an archive that packs to next to nothing has lists that take gigabytes, and they are
// written before anybody knows whether it is approved, on the disk of the log. They leave its room alone.
func TestAttack_ListsTakeTheDisk(t *testing.T) {
	var entries []tar.Header
	for n := range 8 {
		entries = append(entries, tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", n), Mode: 0o755,
			PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("\x01", 1000<<10)}})
	}
	layer := imagetest.Tar(t, entries...)
	file := imagetest.OCI(t, layer).File(t)
	for name, c := range map[string]struct {
		room int64
		want string
	}{"enough": {intakeRoom + 1<<30, ""}, "a part": {intakeRoom + 10<<20, ReasonRoom}, "none": {intakeRoom, ReasonRoom}} {
		s, err := openState(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		asked := int64(0)
		lists := newLists{state: s, free: func() (int64, error) { asked++; return c.room - (asked-1)*roomyLook, nil }}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		a, err := image.Read(t.Context(), f, t.TempDir(), image.Options{Layer: lists.add})
		if Reason(err) != c.want && (err != nil || c.want != "") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			err = a.Close()
		}
		if asked == 0 || name == "a part" && asked < 4 {
			t.Errorf("%s: the disk was asked %d times", name, asked)
		}
		if err := errors.Join(lists.Close(), f.Close()); err != nil {
			t.Error(err)
		}
	}
	if err := room(func() (int64, error) { return freeOn("/none") }, 0); err == nil {
		t.Error("a disk that is not there has room")
	}
}

// The lists of an image are those that were written when all of its layers had been read, byte for
// byte; before it may be loaded they have no names.
func TestListsWhileTheImageIsRead(t *testing.T) {
	entry := func(kind byte, name, to string) tar.Header {
		return tar.Header{Typeflag: kind, Name: name, Linkname: to, Mode: 0o4755, Uid: 7, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "<\u2028>"}}
	}
	same := imagetest.OneFile(t, "etc/a&b", "one")
	file := imagetest.OCI(t, same, imagetest.Tar(t), imagetest.Tar(t, entry(tar.TypeDir, "usr/", ""), entry(tar.TypeReg, "usr/<a>", ""), entry(tar.TypeLink, "usr/b", "usr/<a>"),
		entry(tar.TypeSymlink, "c", "usr/\"q\""), entry(tar.TypeReg, "etc/.wh.a&b", ""), entry(tar.TypeReg, "usr/.wh..wh..opq", "")), same).File(t)
	held, err := image.Open(t.Context(), file, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	s, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	lists := newLists{state: s}
	read, err := image.Open(t.Context(), file, image.Options{Layer: lists.add})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	dir := filepath.Dir(s.treePath(treeOf{}))
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("of an image that may not be loaded: %v, %v", left, err)
	}
	trees, err := lists.keep(read.Image().Layers)
	if err := errors.Join(err, lists.Close()); err != nil || len(trees) != 4 {
		t.Fatalf("%d lists, %v", len(trees), err)
	}
	for i, l := range held.Layers {
		want, err := json.Marshal(slices.Collect(l.Tree.Files()))
		if err != nil {
			t.Fatal(err)
		}
		is, err := os.ReadFile(s.treePath(trees[i]))
		if err != nil || !bytes.Equal(is, want) || trees[i] != (treeOf{l.DiffID, digestOf(want), formVerity}) {
			t.Errorf("layer %d: %v, %+v\n%s\nwant\n%s", i, err, trees[i], is, want)
		}
		if read.Layers[i].Tree != nil {
			t.Errorf("layer %d stays in memory", i)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestAttack_ListChanged: nothing of a list is looked at that is not the one that was kept,
// nor of one that is changed while it is read.
func TestAttack_ListChanged(t *testing.T) {
	s, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.keepList(digestOf(nil), []image.File{{Path: "a", Kind: image.KindDir}, {Path: "b", Kind: image.KindDir}})
	if err != nil {
		t.Fatal(err)
	}
	path := s.treePath(tree)
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change := func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil { // the same file: it may be open
			t.Fatal(err)
		}
	}
	for name, b := range map[string][]byte{"another name": bytes.Replace(kept, []byte(`"b"`), []byte(`"c"`), 1), "less": kept[:len(kept)/2], "more": append(slices.Clone(kept), ' '), "nothing": nil} {
		change(b)
		err := s.list(tree, func(names) error { t.Errorf("%s: it is looked at", name); return nil })
		if own, ok := errors.AsType[*Error](err); !ok || own.Reason != ReasonImageStore {
			t.Errorf("%s: %v", name, err)
		}
	}
	change(kept)
	seen := 0
	err = s.list(tree, func(list names) error {
		change(bytes.Replace(kept, []byte(`"b"`), []byte(`"c"`), 1))
		return list(func(*image.File) error { seen++; return nil })
	})
	if own, ok := errors.AsType[*Error](err); !ok || own.Reason != ReasonImageStore {
		t.Errorf("changed after it was held against its digest: %d seen, %v", seen, err)
	}
}

// A directory hides the one below it where the next line of its list says so, and only there.
func TestOpaqueDirectoryOfAList(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own := image.File{Kind: image.KindDir, Mode: 0o755, UID: os.Getuid(), GID: os.Getgid()}
	entry := func(name string, kind byte) image.File { f := own; f.Path, f.Kind = name, kind; return f }
	c := &comparison{files: verity.Kernel{}, form: formVerity}
	if err := c.onDisk(dir); err != nil {
		t.Fatal(err)
	}
	compare := func(files ...image.File) error { return c.sameFiles(t.Context(), dir, listOf(files)) }
	if err := compare(entry("a", image.KindDir), entry("b", image.KindDir)); err != nil {
		t.Error(err)
	}
	for _, at := range []string{"a", "b"} {
		files := []image.File{entry("a", image.KindDir), entry("b", image.KindDir)}
		i := slices.IndexFunc(files, func(f image.File) bool { return f.Path == at })
		files = slices.Insert(files, i+1, entry(at, image.KindOpaque))
		if err := compare(files...); err == nil {
			t.Errorf("%s hides nothing, and should", at)
		}
	}
	if err := unix.Lsetxattr(filepath.Join(dir, "a"), opaqueAttr, []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if err := compare(entry("a", image.KindDir), entry("a", image.KindOpaque), entry("b", image.KindDir)); err != nil {
		t.Error(err)
	}
	if err := compare(entry("a", image.KindDir), entry("b", image.KindDir)); err == nil {
		t.Error("a hides what is below it, and should not")
	}
}

// More files than are put off at once are compared, all of them.
func TestMoreFilesThanArePutOff(t *testing.T) {
	dir := t.TempDir()
	var files []image.File
	for i := range todoMost + 2 {
		f := image.File{Path: fmt.Sprintf("f%06d", i), Kind: image.KindFile, Mode: 0o644, UID: os.Getuid(), GID: os.Getgid(), Size: 1, Sum: sumOf([]byte("x"))}
		if err := os.WriteFile(filepath.Join(dir, f.Path), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	for _, i := range []int{-1, 0, todoMost - 1, todoMost, todoMost + 1} {
		if i >= 0 {
			files[i].Sum = sumOf([]byte("y"))
		}
		said, err := compareAll(t, dir, files, verity.Kernel{}, formVerity, false)
		if i < 0 && (err != nil || said.hashed+said.sealed != len(files)) || i >= 0 && err == nil {
			t.Errorf("file %d: %+v, %v", i, said, err)
		}
		if i >= 0 {
			files[i].Sum = sumOf([]byte("x"))
		}
	}
}

// BenchmarkCompare compares images of 200,000 names, and tells the most memory that the process
// had (VmHWM) while it did, beside what it had before.
func BenchmarkCompare(b *testing.B) {
	const all, perDir = 200000, 100
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(40 << 20)) // as cmd/verifierd
	for _, layers := range []int{10, 1} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			s, err := openState(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			var dirs []string
			var trees []treeOf
			for l := range layers {
				dir := b.TempDir()
				t, err := s.keepList(digestOf([]byte(dir)), unpackNames(b, dir, l, all/layers, perDir))
				if err != nil {
					b.Fatal(err)
				}
				trees, dirs = append(trees, t), append(dirs, dir)
			}
			g := &Guard{state: s, opt: Options{Verity: verity.Kernel{}}}
			before := forgetMost(b)
			b.ReportAllocs()
			for b.Loop() {
				c := g.comparer(false)
				err := c.onDisk(dirs[0])
				for n, t := range trees {
					if err == nil {
						err = s.list(t, func(list names) error { return c.sameFiles(b.Context(), dirs[n], list) })
					}
					if err == nil {
						err = c.contents(b.Context())
					}
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(before, "MiB-before")
			b.ReportMetric(most(b), "MiB-most")
		})
	}
}

// unpackNames makes a layer of empty files.
func unpackNames(b *testing.B, dir string, layer, n, perDir int) (files []image.File) {
	b.Helper()
	for i := range n {
		f := image.File{Path: nameOf(layer, i, perDir), Kind: image.KindFile, Mode: 0o644, UID: os.Getuid(), GID: os.Getgid(), Sum: sumOf(nil)}
		path := filepath.Join(dir, f.Path)
		var err error
		if i%perDir == 0 {
			err = os.MkdirAll(filepath.Dir(path), 0o755)
		}
		if err = errors.Join(err, os.WriteFile(path, nil, 0o644)); err != nil {
			b.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func nameOf(layer, n, perDir int) string {
	return fmt.Sprintf("usr/lib/portcullis/package-%05d/name-%05d-%05d", n/perDir, layer, n)
}

// BenchmarkImport reads images of 200,000 names and writes their lists, as an import does, and
// tells the most memory as BenchmarkCompare does.
func BenchmarkImport(b *testing.B) {
	const names, perDir = 200000, 100
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(40 << 20)) // as cmd/verifierd
	for _, layers := range []int{10, 1} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			file := manyNames(b, layers, names/layers, perDir)
			s, err := openState(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			before := forgetMost(b)
			for b.Loop() {
				f, err := os.Open(file)
				if err != nil {
					b.Fatal(err)
				}
				lists := newLists{state: s}
				a, err := image.Read(b.Context(), f, filepath.Dir(file), image.Options{Layer: lists.add})
				if err != nil {
					b.Fatal(err)
				}
				_, err = lists.keep(a.Image().Layers)
				if err := errors.Join(err, lists.Close(), a.Close(), f.Close()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(before, "MiB-before")
			b.ReportMetric(most(b), "MiB-most")
		})
	}
}

// manyNames is an OCI layout of empty files, as a tar.
func manyNames(b *testing.B, layers, perLayer, perDir int) string {
	b.Helper()
	var all [][]byte
	for l := range layers {
		var entries []tar.Header
		for n := range perLayer {
			entries = append(entries, tar.Header{Typeflag: tar.TypeReg, Name: nameOf(l, n, perDir), Mode: 0o644})
		}
		all = append(all, imagetest.Tar(b, entries...))
	}
	return imagetest.OCI(b, all...).File(b)
}

// forgetMost lets VmHWM begin anew (proc(5)), and says where.
func forgetMost(b *testing.B) float64 {
	b.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
	return most(b)
}

// most is VmHWM, MiB.
func most(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nVmHWM:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}
