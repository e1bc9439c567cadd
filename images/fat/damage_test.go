package fat

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// volume is a small FAT16 in memory.
func volume(t testing.TB, size int64, files map[string][]byte) []byte {
	t.Helper()
	b, err := os.ReadFile(image(t, Options{Size: size, Label: "DAMAGE", Time: when}, files))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, b []byte) *FS {
	t.Helper()
	fs, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// link lets one cluster follow another one.
func link(fs *FS, b []byte, from, to uint32) {
	at := fs.g.reserved*fs.g.sector + int64(from)*fs.g.entrySize()
	if fs.g.fat32 {
		binary.LittleEndian.PutUint32(b[at:], to)
		return
	}
	binary.LittleEndian.PutUint16(b[at:], uint16(to))
}

func first(t testing.TB, fs *FS, path string) uint32 {
	t.Helper()
	s, err := fs.find(path)
	if err != nil {
		t.Fatal(err)
	}
	return s.cluster
}

func TestDamagedChainsAreRefused(t *testing.T) {
	for name, next := range map[string]func(c uint32) uint32{
		"loops to itself":      func(c uint32) uint32 { return c + 1 },
		"loops to the start":   func(c uint32) uint32 { return c },
		"ends early":           func(uint32) uint32 { return 0xFFFF },
		"free cluster":         func(uint32) uint32 { return 0 },
		"reserved cluster":     func(uint32) uint32 { return 1 },
		"bad cluster":          func(uint32) uint32 { return 0xFFF7 },
		"behind the volume":    func(uint32) uint32 { return 0xFFF0 },
		"first behind the end": func(uint32) uint32 { return 8191 },
	} {
		b := volume(t, MinSize, map[string][]byte{"a": noise(1, 3000), "dir/b": noise(2, 10)})
		fs := parse(t, b)
		c := first(t, fs, "a")
		link(fs, b, c+1, next(c))
		if got, err := fs.ReadFile("a", 1<<20); reason(err) != ReasonDamaged {
			t.Errorf("%s: read %d bytes, %v", name, len(got), err)
		}
		if off, n, err := fs.Extent("a"); err == nil {
			t.Errorf("%s: extent %d+%d", name, off, n)
		}
		if got, err := fs.ReadFile("dir/b", 1<<20); err != nil || !bytes.Equal(got, noise(2, 10)) {
			t.Errorf("%s: the file beside it: %v", name, err)
		}
	}
}

func TestChainLongerThanTheFileIsRefused(t *testing.T) {
	b := volume(t, MinSize, map[string][]byte{"a": noise(1, 3000)})
	fs := parse(t, b)
	c := first(t, fs, "a")
	link(fs, b, c+5, c+6)
	if _, err := fs.ReadFile("a", 1<<20); reason(err) != ReasonDamaged {
		t.Error(err)
	}
}

func TestLoopingDirectoriesEnd(t *testing.T) {
	files := map[string][]byte{}
	for i := range 40 {
		files["dir/"+strings.Repeat("x", i+1)] = nil
	}
	files["dir/sub/file"] = []byte("x")
	t.Run("chain", func(t *testing.T) {
		b := volume(t, MinSize, files)
		fs := parse(t, b)
		list, err := fs.readDir(&slot{root: true}, new(int))
		if err == nil {
			t.Fatalf("%d entries without a budget", len(list))
		}
		budget := 100
		list, err = fs.readDir(&slot{root: true}, &budget)
		if err != nil || len(list) != 1 {
			t.Fatal(len(list), err)
		}
		c := list[0].cluster
		// The directory's clusters are full of entries and lead back to the first.
		for i := range uint32(20) {
			if v, end, _ := (&table{f: fs}).next(c + i); end || v != c+i+1 {
				link(fs, b, c+i, c)
				full := b[fs.g.offset(c+i):][:fs.g.clusterSize()]
				for j := 0; j < len(full); j += slotSize {
					if full[j] == 0 {
						full[j] = 0xE5
					}
				}
				break
			}
		}
		if _, err := fs.List(); reason(err) != ReasonDamaged {
			t.Error(err)
		}
	})
	t.Run("directory in itself", func(t *testing.T) {
		b := volume(t, MinSize, files)
		fs := parse(t, b)
		budget := 100
		list, err := fs.readDir(&slot{root: true}, &budget)
		if err != nil {
			t.Fatal(err)
		}
		dir := list[0]
		at := bytes.Index(b, []byte("SUB        "))
		binary.LittleEndian.PutUint16(b[at+26:], uint16(dir.cluster))
		if _, err := fs.List(); reason(err) != ReasonDamaged {
			t.Error(err)
		}
	})
}

func TestImpossibleBootSectorsAreRefused(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func(b []byte){
		"no mark":                   func(b []byte) { b[510] = 0 },
		"no jump":                   func(b []byte) { b[0] = 0 },
		"sectors of 0":              func(b []byte) { le.PutUint16(b[11:], 0) },
		"sectors of 513":            func(b []byte) { le.PutUint16(b[11:], 513) },
		"sectors of 8192":           func(b []byte) { le.PutUint16(b[11:], 8192) },
		"clusters of 0":             func(b []byte) { b[13] = 0 },
		"clusters of 3":             func(b []byte) { b[13] = 3 },
		"nothing reserved":          func(b []byte) { le.PutUint16(b[14:], 0) },
		"no table":                  func(b []byte) { b[16] = 0 },
		"three tables":              func(b []byte) { b[16] = 3 },
		"more sectors than there":   func(b []byte) { le.PutUint16(b[19:], 0); le.PutUint32(b[32:], 1<<31) },
		"no sectors":                func(b []byte) { le.PutUint16(b[19:], 0) },
		"table longer than all":     func(b []byte) { le.PutUint16(b[22:], 0xFFFF) },
		"table too short":           func(b []byte) { le.PutUint16(b[22:], 1) },
		"no root directory":         func(b []byte) { le.PutUint16(b[17:], 0) },
		"root directory not whole":  func(b []byte) { le.PutUint16(b[17:], 511) },
		"clusters of FAT12":         func(b []byte) { b[13] = 8 },
		"FAT32 with a fixed root":   func(b []byte) { le.PutUint16(b[22:], 0); le.PutUint32(b[36:], 100) },
		"FAT32, root at cluster 0":  func(b []byte) { le.PutUint16(b[22:], 0); le.PutUint16(b[17:], 0); le.PutUint32(b[36:], 100) },
		"FAT32 of another version":  func(b []byte) { le.PutUint16(b[22:], 0); b[42] = 1 },
		"reserved behind the whole": func(b []byte) { le.PutUint16(b[14:], 0xFFFF) },
	} {
		b := volume(t, MinSize, nil)
		change(b)
		if fs, err := Open(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("%s: %+v", name, fs.g)
		}
	}
	if _, err := Open(bytes.NewReader(nil), 0); err == nil {
		t.Error("nothing is opened")
	}
	b := volume(t, MinSize, nil)
	if _, err := Open(bytes.NewReader(b[:len(b)-512]), int64(len(b)-512)); err == nil {
		t.Error("a cut volume is opened")
	}
}

func TestBuildRefuses(t *testing.T) {
	good := Options{Size: MinSize}
	for name, c := range map[string]struct {
		o      Options
		files  map[string][]byte
		reason string
	}{
		"too small":              {Options{Size: MinSize - 512}, nil, ReasonSize},
		"too large":              {Options{Size: MaxSize + 512}, nil, ReasonSize},
		"half a sector":          {Options{Size: MinSize + 256}, nil, ReasonSize},
		"label too long":         {Options{Size: MinSize, Label: "TWELVE CHARS"}, nil, ReasonName},
		"label in lower case":    {Options{Size: MinSize, Label: "label"}, nil, ReasonName},
		"year 1979":              {Options{Size: MinSize, Time: when.AddDate(-47, 0, 0)}, nil, ReasonMalformed},
		"too much":               {good, map[string][]byte{"a": make([]byte, MinSize)}, ReasonSize},
		"name twice":             {good, map[string][]byte{"a": nil, "A": nil}, ReasonName},
		"file and directory":     {good, map[string][]byte{"a": nil, "a/b": nil}, ReasonName},
		"climbs":                 {good, map[string][]byte{"../a": nil}, ReasonName},
		"absolute":               {good, map[string][]byte{"/a": nil}, ReasonName},
		"ends in a point":        {good, map[string][]byte{"a.": nil}, ReasonName},
		"ends in a space":        {good, map[string][]byte{"a ": nil}, ReasonName},
		"backslash":              {good, map[string][]byte{`a\b`: nil}, ReasonName},
		"line feed":              {good, map[string][]byte{"a\nb": nil}, ReasonName},
		"not UTF-8":              {good, map[string][]byte{"a\xff": nil}, ReasonName},
		"256 characters":         {good, map[string][]byte{strings.Repeat("x", 256): nil}, ReasonName},
		"deep":                   {good, map[string][]byte{strings.Repeat("x/", maxDepth) + "x": nil}, ReasonName},
		"more than root's slots": {good, many(rootEntries), ReasonSize},
	} {
		var w sink
		if err := Build(&w, c.o, c.files); reason(err) != c.reason {
			t.Errorf("%s: %v", name, err)
		}
		if w.n != 0 {
			t.Errorf("%s: %d bytes were written all the same", name, w.n)
		}
	}
	short := File{Path: "a", Size: 10, Content: strings.NewReader("nine char")}
	if err := BuildFiles(&sink{}, good, []File{short}); err == nil {
		t.Error("a content shorter than its file is taken")
	}
	if err := BuildFiles(&sink{}, good, []File{{Path: "a", Size: 1 << 32, Content: zeros{}}}); reason(err) != ReasonSize {
		t.Errorf("4 GiB in one file: %v", err)
	}
}

type sink struct{ n int }

func (s *sink) WriteAt(b []byte, _ int64) (int, error) { s.n += len(b); return len(b), nil }

func many(n int) map[string][]byte {
	files := map[string][]byte{}
	for i := range n {
		files[strings.Repeat("X", i%8+1)+"/"+strings.Repeat("y", i+1)[:min(i+1, 200)]+string(rune('A'+i%26))] = nil
		files[string(rune('A'+i%26))+string(rune('A'+i/26%26))+"long enough for a long name"] = nil
	}
	return files
}

func TestNotFound(t *testing.T) {
	fs := parse(t, volume(t, MinSize, map[string][]byte{"dir/file": []byte("x")}))
	for _, p := range []string{"", "nobody", "dir", "dir/nobody", "dir/file/more", "dir/", "/dir/file", ".", "dir/.", "dir/../dir/file", strings.Repeat("a/", 20)} {
		if b, err := fs.ReadFile(p, 1<<20); reason(err) != ReasonNotFound {
			t.Errorf("%q: %q, %v", p, b, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	// Head is what is fuzzed of a volume: boot sector, table, directories. The rest is zero.
	const head = 96 << 10
	for _, files := range []map[string][]byte{
		{"a": []byte("x"), "dir/a long name.txt": noise(1, 2000), "dir/sub/b": noise(2, 600)},
		nil,
	} {
		f.Add(volume(f, MinSize, files)[:head])
	}
	b := volume(f, fat32From, map[string][]byte{"dir/file": []byte("x")})
	f.Add(b[:head])
	fs := parse(f, b)
	small := append(b[:32*512:32*512], b[fs.g.reserved*512:][:512]...)
	binary.LittleEndian.PutUint32(small[36:], 64)
	binary.LittleEndian.PutUint32(small[32:], 8192)
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > head {
			return
		}
		r := padded{b, MinSize}
		fs, err := Open(r, MinSize)
		if err != nil {
			return
		}
		list, err := fs.List()
		if err != nil {
			return
		}
		for i, e := range list {
			if i > 100 {
				break
			}
			if got, err := fs.ReadFile(e.Path, 1<<20); err == nil && int64(len(got)) > 1<<20 {
				t.Errorf("%s has %d bytes", e.Path, len(got))
			}
			off, n, err := fs.Extent(e.Path)
			if err == nil && (off < 0 || n <= 0 || off+n > MinSize) {
				t.Errorf("%s lies at %d+%d, outside the volume", e.Path, off, n)
			}
		}
	})
}

// padded is b with zeros behind it.
type padded struct {
	b    []byte
	size int64
}

func (p padded) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(p.b)) {
		copy(b, p.b[off:])
	}
	return len(b), nil
}

// TestOneNameTwiceIsRefused: a second file of a name could be the one that the firmware
// starts, beside the one that is measured.
func TestOneNameTwiceIsRefused(t *testing.T) {
	for name, change := range map[string]func(b, root []byte){
		"same short name": func(b, root []byte) { copy(find11(t, root, "KERNEL9 IMG"), "KERNEL8 IMG") },
		"another case": func(b, root []byte) {
			e := find11(t, root, "KERNEL9 IMG")
			copy(e, "KERNEL8 IMG")
			e[12] ^= 0x18
		},
		"a short name that is a long one elsewhere": func(b, root []byte) {
			s := bytes.Index(root, []byte{'l', 0, 'o', 0, 'n', 0, 'g', 0, 'n', 0})
			if s < 0 {
				t.Fatal("no long name")
			}
			copy(find11(t, root, "KERNEL9 IMG"), "LONGNAME")
		},
	} {
		files := map[string][]byte{"KERNEL8.IMG": []byte("good"), "KERNEL9.IMG": []byte("evil"), "longname.IMG": []byte("long")}
		b := volume(t, MinSize, files)
		fs := parse(t, b)
		if _, err := fs.List(); err != nil {
			t.Fatal(err)
		}
		root := b[fs.g.rootStart()*fs.g.sector:][:fs.g.rootSectors*fs.g.sector]
		change(b, root)
		if list, err := fs.List(); reason(err) != ReasonName {
			t.Errorf("%s: List: %v, %v", name, list, err)
		}
		if got, err := fs.ReadFile("KERNEL8.IMG", 100); reason(err) != ReasonName {
			t.Errorf("%s: ReadFile: %q, %v", name, got, err)
		}
	}
}

// find11 is the slot of a short name.
func find11(t *testing.T, root []byte, name string) []byte {
	t.Helper()
	for off := 0; off < len(root); off += slotSize {
		if string(root[off:off+11]) == name {
			return root[off : off+slotSize]
		}
	}
	t.Fatalf("no %q", name)
	return nil
}

func TestFoldedNamesAreThoseThatEqualFold(t *testing.T) {
	for _, c := range [][2]string{{"kernel.img", "KERNEL.IMG"}, {"\u212Aernel", "kernel"}, {"di\u017Fk", "DISK"}, {"a", "b"}, {"\u00E4", "\u00C4"}} {
		if got, want := folded(c[0]) == folded(c[1]), strings.EqualFold(c[0], c[1]); got != want {
			t.Errorf("%q and %q: %t instead of %t", c[0], c[1], got, want)
		}
	}
}
