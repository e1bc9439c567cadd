package rootimage

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree writes files with holes, tails, many names and odd sizes.
func tree(t testing.TB) (dir string, files map[string][]byte) {
	t.Helper()
	dir = t.TempDir()
	r := rand.New(rand.NewPCG(7, 7))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32() % 40) // compressible
		}
		return b
	}
	holes := random(500_000)
	clear(holes[131072:393216])
	files = map[string][]byte{
		"/empty": {}, "/one": {1}, "/block": random(131072), "/usr/bin/block and tail": random(131073), "/usr/bin/large": random(900_001),
		"/usr/lib/holes": holes, "/usr/lib/zeros": make([]byte, 300_000), "/incompressible": func() []byte {
			b := random(140_000)
			rand.New(rand.NewPCG(1, 1)).Shuffle(len(b), func(i, j int) { b[i], b[j] = byte(r.Uint32()), b[i] })
			return b
		}(),
	}
	for i := range 700 { // more than one run and one metadata block of names
		files[filepath.Join("/etc/many", "a-name-that-is-long-enough-"+string(rune('a'+i%26))+string(rune('a'+i/26)))] = []byte{byte(i)}
	}
	for p, b := range files {
		at := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(at, time.Unix(1700000000, 0), time.Unix(1700000000, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/one", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir, files
}

func pack(t testing.TB, dir string, options ...string) *os.File {
	t.Helper()
	img := filepath.Join(t.TempDir(), "root.img")
	args := append([]string{dir, img, "-noappend", "-quiet", "-no-progress"}, options...)
	if out, err := exec.Command("mksquashfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs (package squashfs-tools): %v\n%s", err, out)
	}
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReadFile_EveryCompressorAndBlockSize(t *testing.T) {
	dir, files := tree(t)
	for _, options := range [][]string{{"-comp", "zstd", "-b", "128K"}, {"-comp", "zstd", "-b", "1M"}, {"-comp", "xz", "-b", "256K"},
		{"-comp", "gzip", "-b", "4K"}, {"-comp", "zstd", "-noI", "-noD", "-noF"}, {"-comp", "zstd", "-no-fragments"}} {
		img, err := Open(pack(t, dir, options...))
		if err != nil {
			t.Fatalf("%v: %v", options, err)
		}
		for p, want := range files {
			got, err := img.ReadFile(p, 1<<20)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%v: %s: %d bytes of %d, %v", options, p, len(got), len(want), err)
			}
			f, err := img.Lookup(p)
			if err != nil || f.Time() != 1700000000e9 || f.Number() == 0 {
				t.Errorf("%v: %s: made at %d, number %d, %v", options, p, f.Time(), f.Number(), err)
			}
		}
	}
}

func TestReadAt_AnyPieceInAnyOrder(t *testing.T) {
	dir, files := tree(t)
	img, err := Open(pack(t, dir, "-comp", "zstd"))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 3))
	for _, p := range []string{"/usr/bin/large", "/usr/lib/holes", "/usr/bin/block and tail"} {
		f, err := img.Lookup(p)
		if err != nil {
			t.Fatal(err)
		}
		want := files[p]
		for range 200 {
			off := r.IntN(len(want) + 10)
			buf := make([]byte, r.IntN(200_000))
			n, err := f.ReadAt(buf, int64(off))
			end := min(off+len(buf), len(want))
			if off > len(want) {
				end = off
			}
			if n != max(end-off, 0) || (n > 0 && !bytes.Equal(buf[:n], want[off:end])) || (n < len(buf)) != errors.Is(err, io.EOF) {
				t.Fatalf("%s at %d: %d bytes of %d, %v", p, off, n, len(buf), err)
			}
		}
	}
}

func TestLookup_WhatIsNoFile(t *testing.T) {
	dir, _ := tree(t)
	img, err := Open(pack(t, dir, "-comp", "zstd"))
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]error{"/none": fs.ErrNotExist, "/usr": ErrNotRegular, "/link": ErrNotRegular, "/": ErrNotRegular,
		"/one/below": fs.ErrNotExist, "/usr/../one": fs.ErrNotExist, "/usr/./bin": fs.ErrNotExist, "one": fs.ErrInvalid, "": fs.ErrInvalid,
		"/etc/many/a-name": fs.ErrNotExist} {
		if _, err := img.Lookup(p); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", p, err, want)
		}
	}
	if _, err := img.ReadFile("/usr/bin/large", 1000); err == nil {
		t.Error("a file larger than allowed was read")
	}
}

// attestd runs on a small machine: reading must not gather the image in memory.
func TestMemoryIsBounded(t *testing.T) {
	dir := t.TempDir()
	r := rand.NewChaCha8([32]byte{})
	for _, n := range []string{"a", "b", "c", "d"} {
		b := make([]byte, 12<<20)
		_, _ = r.Read(b)
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img, err := Open(pack(t, dir, "-comp", "zstd", "-b", "1M", "-noD"))
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, 4096)
	for _, n := range []string{"/a", "/b", "/c", "/d"} {
		f, err := img.Lookup(n)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < f.Size(); off += 1 << 20 {
			if _, err := f.ReadAt(page, off); err != nil {
				t.Fatal(err)
			}
		}
	}
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	if s.HeapAlloc > 24<<20 {
		t.Errorf("%d bytes are held after 48 MiB were read", s.HeapAlloc)
	}
	runtime.KeepAlive(img)
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/bin/a"), bytes.Repeat([]byte("text"), 3000), 0o644); err != nil {
		f.Fatal(err)
	}
	for _, c := range []string{"zstd", "gzip", "xz"} {
		b, err := io.ReadAll(pack(f, dir, "-comp", c, "-b", "4K", "-nopad"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := Open(bytes.NewReader(b))
		if err != nil {
			return
		}
		file, err := img.Lookup("/usr/bin/a")
		if err != nil {
			return
		}
		buf := make([]byte, 4096)
		for off := int64(0); off < min(file.Size(), 1<<16); off += 4096 {
			if _, err := file.ReadAt(buf, off); err != nil {
				return
			}
		}
		_, _ = file.ReadAt(buf, file.Size()-1)
	})
}

func BenchmarkRandomPages(b *testing.B) {
	dir, _ := tree(b)
	img, err := Open(pack(b, dir, "-comp", "zstd"))
	if err != nil {
		b.Fatal(err)
	}
	f, err := img.Lookup("/usr/bin/large")
	if err != nil {
		b.Fatal(err)
	}
	page := make([]byte, 4096)
	i := int64(0)
	for b.Loop() {
		if _, err := f.ReadAt(page, i%219*4096); err != nil {
			b.Fatal(err)
		}
		i += 97
	}
}

// What List says of a directory is what stat(2) says of it before it was packed.
func TestList_IsWhatStatSays(t *testing.T) {
	dir, files := tree(t)
	if err := os.Chmod(filepath.Join(dir, "/usr/bin/large"), 0o750|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "/one"), 1234, 70000); err != nil {
		t.Fatal(err)
	}
	for _, options := range [][]string{{"-comp", "zstd"}, {"-comp", "zstd", "-noI"}} {
		img, err := Open(pack(t, dir, options...))
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		var walk func(path string)
		walk = func(path string) {
			list, err := img.List(path)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			names, err := os.ReadDir(filepath.Join(dir, path))
			if err != nil || len(names) != len(list) {
				t.Fatalf("%s: %d entries, packed were %d (%v)", path, len(list), len(names), err)
			}
			for i, e := range list {
				var st unix.Stat_t
				at := filepath.Join(dir, path, e.Name)
				if err := unix.Lstat(at, &st); err != nil {
					t.Fatal(err)
				}
				if e.Name != names[i].Name() || e.Mode != st.Mode || e.UID != st.Uid || e.GID != st.Gid || e.IsRegular() && (e.Size != st.Size || e.Time != st.Mtim.Sec*1e9) {
					t.Errorf("%s: %+v, packed was %+v", at, e, st)
				}
				if e.Mode&modeType == modeLink && e.Target != "/one" {
					t.Errorf("%s leads to %q", at, e.Target)
				}
				if e.IsRegular() {
					seen++
				}
				if e.IsDir() {
					walk(filepath.Join(path, e.Name))
				}
			}
		}
		walk("/")
		if seen != len(files) {
			t.Errorf("%d files of %d", seen, len(files))
		}
		if _, err := img.List("/one"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file was listed as a directory: %v", err)
		}
	}
}
