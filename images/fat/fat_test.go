package fat

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var when = time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC)

// run calls a tool that must be there and returns what it says.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C.UTF-8", "TZ=UTC")
	if p, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		cmd.Path, cmd.Err = p, nil
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is needed: apt-get install dosfstools mtools", name)
	}
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func example() map[string][]byte {
	files := map[string][]byte{
		"autoboot.txt":            bytes.Repeat([]byte("\n"), 512),
		"STATE.BIN":               noise(1, 65536),
		"SEED.YML":                bytes.Repeat([]byte("\n"), 65536),
		"empty":                   nil,
		"kernel8.img":             noise(2, 3<<20+17),
		"bcm2711-rpi-4-b.dtb":     noise(3, 5000),
		"bcm2711-rpi-cm4.dtb":     noise(4, 5001),
		"EFI/BOOT/BOOTAA64.EFI":   noise(5, 70001),
		"overlays/a b.dtbo":       []byte("space"),
		"overlays/a+b.dtbo":       []byte("plus"),
		"overlays/a,b.dtbo":       []byte("comma"),
		"overlays/ünïcode 漢字.txt": []byte("unicode"),
		"overlays/.hidden":        []byte("point first"),
		"overlays/two.points.txt": []byte("two points"),
		// Alone, as mtools 4.0.48 finds no room for it where one cluster more is not enough.
		"long/" + strings.Repeat("long", 60) + ".txt": []byte("long"),
		"d1/d2/d3/d4/deep":                            []byte("deep"),
	}
	for i := range 200 {
		files[fmt.Sprintf("many/file number %d.txt", i)] = []byte(fmt.Sprint(i))
	}
	return files
}

// image builds a file system in a file.
func image(t testing.TB, o Options, files map[string][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fat.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(o.Size); err != nil {
		t.Fatal(err)
	}
	if err := Build(f, o, files); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *FS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func sizes() map[string]int64 {
	return map[string]int64{
		"least": MinSize, "config": 32 << 20, "boot": 64 << 20, "20 MB": 20_000_256, "largest FAT16": 511 << 20,
		"FAT32": 512 << 20, "4 GiB": 4 << 30, "32 GiB": 32 << 30,
	}
}

func TestToolsAcceptWhatIsBuilt(t *testing.T) {
	for name, size := range sizes() {
		t.Run(name, func(t *testing.T) {
			files := example()
			path := image(t, Options{Size: size, Label: "PCBOOT_A", ID: 0x1234ABCD, Time: when}, files)
			if out := run(t, "fsck.fat", "-n", "-v", path); strings.Contains(out, "fix") || strings.Contains(out, "Dirty") {
				t.Error(out)
			}
			out := t.TempDir()
			run(t, "mcopy", "-s", "-m", "-i", path, "::*", out)
			for p, want := range files {
				got, err := os.ReadFile(filepath.Join(out, p))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("mcopy, %s: %d bytes instead of %d, %v", p, len(got), len(want), err)
				}
			}
			st, err := os.Stat(filepath.Join(out, "kernel8.img"))
			if err != nil || !st.ModTime().Equal(when) {
				t.Errorf("time %v, %v", st.ModTime(), err)
			}
			if dir := run(t, "mdir", "-i", path, "::"); !strings.Contains(dir, "PCBOOT_A") || !strings.Contains(dir, "1234-ABCD") {
				t.Error(dir)
			}
		})
	}
}

func TestReadsWhatIsBuilt(t *testing.T) {
	for name, size := range sizes() {
		t.Run(name, func(t *testing.T) {
			files := example()
			path := image(t, Options{Size: size, Label: "PCCONF", ID: 7, Time: when}, files)
			fs := open(t, path)
			if fs.Label() != "PCCONF" || fs.ID() != 7 {
				t.Errorf("label %q, id %d", fs.Label(), fs.ID())
			}
			if at := fs.g.offset(2); at%4096 != 0 {
				t.Errorf("data begins at %d: no file is aligned on an aligned partition", at)
			}
			same(t, fs, files)
			whole, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer whole.Close()
			for p, want := range files {
				off, n, err := fs.Extent(strings.ToLower(p))
				if len(want) == 0 {
					if err == nil {
						t.Errorf("%s is empty and has an extent", p)
					}
					continue
				}
				if err != nil || n != int64(len(want)) || off%SectorSize != 0 {
					t.Fatalf("extent of %s: %d+%d, %v", p, off, n, err)
				}
				got := make([]byte, n)
				if _, err := whole.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
					t.Errorf("extent of %s holds something else, %v", p, err)
				}
			}
		})
	}
}

// same compares everything on a volume with what should be there.
func same(t *testing.T, fs *FS, files map[string][]byte) {
	t.Helper()
	list, err := fs.List()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, e := range list {
		if e.Dir {
			continue
		}
		found++
		want, ok := files[e.Path]
		if !ok || e.Size != int64(len(want)) {
			t.Errorf("%s with %d bytes, want %d, known %v", e.Path, e.Size, len(want), ok)
		}
	}
	if found != len(files) {
		t.Errorf("%d files, want %d", found, len(files))
	}
	for p, want := range files {
		for _, as := range []string{p, strings.ToUpper(p)} {
			if got, err := fs.ReadFile(as, 8<<20); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes instead of %d, %v", as, len(got), len(want), err)
			}
		}
	}
}

func TestReadsWhatToolsWrite(t *testing.T) {
	for name, args := range map[string][]string{
		"FAT16":                {"-C", "-n", "TOOLS", "-i", "00C0FFEE", "IMG", "32768"},
		"FAT32":                {"-C", "-F", "32", "-n", "TOOLS", "-i", "00C0FFEE", "IMG", "131072"},
		"FAT32, one sector":    {"-C", "-F", "32", "-s", "1", "-n", "TOOLS", "-i", "00C0FFEE", "IMG", "65536"},
		"FAT16, one table":     {"-C", "-F", "16", "-f", "1", "-s", "4", "-n", "TOOLS", "-i", "00C0FFEE", "IMG", "65536"},
		"FAT16, large sectors": {"-C", "-F", "16", "-S", "2048", "-n", "TOOLS", "-i", "00C0FFEE", "IMG", "65536"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "fat.img")
			for i := range args {
				if args[i] == "IMG" {
					args[i] = path
				}
			}
			run(t, "mkfs.fat", args...)
			files := example()

			src := filepath.Join(dir, "src")
			for p, b := range files {
				if err := os.MkdirAll(filepath.Join(src, filepath.Dir(p)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(src, p), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			tops, err := os.ReadDir(src)
			if err != nil {
				t.Fatal(err)
			}
			cmd := []string{"-s", "-i", path}
			for _, e := range tops {
				cmd = append(cmd, filepath.Join(src, e.Name()))
			}
			run(t, "mcopy", append(cmd, "::")...)
			fs := open(t, path)
			if fs.Label() != "TOOLS" || fs.ID() != 0xC0FFEE {
				t.Errorf("label %q, id %#x", fs.Label(), fs.ID())
			}
			same(t, fs, files)
		})
	}
}

func TestFragmentedFileIsReadButHasNoExtent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "fat.img")
	run(t, "mkfs.fat", "-F", "16", "-s", "1", "-C", path, "8192")
	small, large := filepath.Join(dir, "small"), filepath.Join(dir, "large")
	if err := os.WriteFile(small, noise(1, 300_000), 0o644); err != nil {
		t.Fatal(err)
	}
	want := noise(2, 5_000_000)
	if err := os.WriteFile(large, want, 0o644); err != nil {
		t.Fatal(err)
	}
	// Every second of these is removed, and the large file takes the holes.
	for i := range 25 {
		run(t, "mcopy", "-i", path, small, fmt.Sprintf("::f%d", i))
	}
	for i := 0; i < 25; i += 2 {
		run(t, "mdel", "-i", path, fmt.Sprintf("::f%d", i))
	}
	want = want[:3_500_000]
	if err := os.Truncate(large, int64(len(want))); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-i", path, large, "::large")
	fs := open(t, path)
	if got, err := fs.ReadFile("LARGE", 8<<20); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	// In pieces or not, it is read at any place.
	r, err := fs.Reader("large")
	if err != nil || r.Size() != int64(len(want)) {
		t.Fatalf("%v", err)
	}
	for _, at := range []int64{0, 1, 511, 4096, 299_999, 300_000, 1_234_567, int64(len(want)) - 3} {
		b := make([]byte, 700_000)
		n, err := r.ReadAt(b, at)
		if part := want[at:min(at+700_000, int64(len(want)))]; !bytes.Equal(b[:n], part) || (err != nil) != (len(part) < len(b)) {
			t.Errorf("at %d: %d bytes, %v", at, n, err)
		}
	}
	if _, err := fs.Reader("none"); reason(err) != ReasonNotFound {
		t.Error(err)
	}
	if off, n, err := fs.Extent("large"); reason(err) != ReasonFragmented {
		t.Errorf("extent %d+%d, %v", off, n, err)
	}
	if _, _, err := fs.Extent("f1"); err != nil {
		t.Error(err)
	}
}

func reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return fmt.Sprint(err)
}

func TestSameInputsSameBytes(t *testing.T) {
	sum := func() [32]byte {
		b, err := os.ReadFile(image(t, Options{Size: 16 << 20, Label: "X", ID: 1, Time: when}, example()))
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(b)
	}
	first := sum()
	for range 3 {
		if sum() != first {
			t.Fatal("another build gives other bytes")
		}
	}
}

// zeros is an endless content.
type zeros struct{}

func (zeros) ReadAt(b []byte, _ int64) (int, error) { clear(b); return len(b), nil }

func TestLargeFileIsStreamed(t *testing.T) {
	const size = 3 << 30
	path := filepath.Join(t.TempDir(), "fat.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size + 64<<20); err != nil {
		t.Fatal(err)
	}
	last := []byte("the end")
	content := io.NewSectionReader(patched{zeros{}, size - int64(len(last)), last}, 0, size)
	skipping := &holes{f}
	err = BuildFiles(skipping, Options{Size: size + 64<<20}, []File{{Path: "root.img", Size: size, Content: content}})
	if err != nil {
		t.Fatal(err)
	}
	fs := open(t, path)
	off, n, err := fs.Extent("root.img")
	if err != nil || n != size {
		t.Fatalf("%d+%d, %v", off, n, err)
	}
	got := make([]byte, len(last))
	if _, err := f.ReadAt(got, off+n-int64(len(last))); err != nil || !bytes.Equal(got, last) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := fs.ReadFile("root.img", 1<<20); reason(err) != ReasonSize {
		t.Errorf("a file over the cap: %v", err)
	}
	run(t, "fsck.fat", "-n", path)
}

type patched struct {
	io.ReaderAt
	at int64
	b  []byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	for i, c := range p.b {
		if k := p.at + int64(i) - off; k >= 0 && k < int64(len(b)) {
			b[k] = c
		}
	}
	return n, err
}

// holes leaves zeros out, so that a test of gigabytes writes none.
type holes struct{ io.WriterAt }

func (h *holes) WriteAt(b []byte, off int64) (int, error) {
	if len(bytes.TrimLeft(b, "\x00")) == 0 {
		return len(b), nil
	}
	return h.WriterAt.WriteAt(b, off)
}
