package cpio_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"portcullis/images/cpio"
)

func archive(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b, 1700000000)
	for _, err := range []error{
		w.Dir("dev", 0o755),
		w.CharDevice("dev/console", 0o600, 5, 1),
		w.Dir("etc", 0o755),
		w.File("etc/empty", 0o644, nil),
		w.File("etc/three", 0o640, []byte("abc")),
		w.File("init", 0o755, bytes.Repeat([]byte{0, 1, 2}, 1000)),
		w.Symlink("linuxrc", "etc/three"),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// GNU cpio reads what the writer wrote, two archives behind each other as well.
func TestArchiveIsReadByGNUCpio(t *testing.T) {
	tool, err := exec.LookPath("cpio")
	if err != nil {
		t.Fatal("cpio is missing: install cpio")
	}
	cmd := exec.Command(tool, "--list", "--verbose", "--numeric-uid-gid", "--quiet")
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(archive(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"drwxr-xr-x 2 0 0 0 Nov 14 2023 dev",
		"crw------- 1 0 0 5, 1 Nov 14 2023 dev/console",
		"drwxr-xr-x 2 0 0 0 Nov 14 2023 etc",
		"-rw-r--r-- 1 0 0 0 Nov 14 2023 etc/empty",
		"-rw-r----- 1 0 0 3 Nov 14 2023 etc/three",
		"-rwxr-xr-x 1 0 0 3000 Nov 14 2023 init",
		"lrwxrwxrwx 1 0 0 9 Nov 14 2023 linuxrc -> etc/three",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("cpio lists\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	dir := t.TempDir()
	extract := exec.Command(tool, "--extract", "--quiet", "etc/three", "etc", "init")
	extract.Dir = dir
	extract.Stdin = bytes.NewReader(archive(t))
	if out, err := extract.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if b, err := os.ReadFile(dir + "/init"); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{0, 1, 2}, 1000)) {
		t.Fatalf("init came out changed: %v", err)
	}
}

func TestArchiveIsTheSameEveryTime(t *testing.T) {
	a := archive(t)
	if len(a)%4 != 0 {
		t.Errorf("%d bytes: a second archive behind it would not be aligned", len(a))
	}
	// Two entries of one inode would be unpacked as hard links.
	inodes := map[string]bool{}
	headers := regexp.MustCompile(`070701([0-9a-f]{8})[0-9a-f]{96}`).FindAllSubmatch(a, -1)
	for _, h := range headers {
		inodes[string(h[1])] = true
	}
	if len(headers) != 8 || len(inodes) != 8 {
		t.Errorf("%d entries have %d inodes", len(headers), len(inodes))
	}
	if !bytes.Equal(a, archive(t)) {
		t.Error("two archives of the same entries differ")
	}
	if !bytes.Equal(cpio.Zstd(a), cpio.Zstd(archive(t))) {
		t.Error("two compressions of the same archive differ")
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, add := range map[string]func(*cpio.Writer) error{
		"no parent":        func(w *cpio.Writer) error { return w.File("a/b", 0o644, nil) },
		"parent is a file": func(w *cpio.Writer) error { return errors.Join(w.File("a", 0o644, nil), w.File("a/b", 0o644, nil)) },
		"twice":            func(w *cpio.Writer) error { return errors.Join(w.Dir("a", 0o755), w.Dir("a", 0o755)) },
		"absolute":         func(w *cpio.Writer) error { return w.Dir("/a", 0o755) },
		"parent directory": func(w *cpio.Writer) error { return w.Dir("..", 0o755) },
		"slash at the end": func(w *cpio.Writer) error { return w.Dir("a/", 0o755) },
		"empty":            func(w *cpio.Writer) error { return w.Dir("", 0o755) },
		"end of archive":   func(w *cpio.Writer) error { return w.File("TRAILER!!!", 0o644, nil) },
		"NUL":              func(w *cpio.Writer) error { return w.File("a\x00b", 0o644, nil) },
		"too long":         func(w *cpio.Writer) error { return w.File(strings.Repeat("a", 4096), 0o644, nil) },
		"permission":       func(w *cpio.Writer) error { return w.File("a", 0o100644, nil) },
		"empty target":     func(w *cpio.Writer) error { return w.Symlink("a", "") },
	} {
		w := cpio.NewWriter(&bytes.Buffer{}, 0)
		if err := add(w); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if err := w.Close(); err == nil {
			t.Errorf("%s: the error is forgotten at Close", name)
		}
	}
	w := cpio.NewWriter(full{}, 0)
	if err := w.Dir("a", 0o755); !errors.Is(err, errFull) {
		t.Errorf("a write error is lost: %v", err)
	}
}

var errFull = errors.New("the disk is full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestZstdRoundTrip(t *testing.T) {
	data := []byte(fmt.Sprint(make([]int, 100000)))
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	packed := cpio.Zstd(data)
	back, err := dec.DecodeAll(packed, nil)
	if err != nil || !bytes.Equal(back, data) || len(packed) > len(data)/10 {
		t.Fatalf("%d bytes to %d and back to %d: %v", len(data), len(packed), len(back), err)
	}
}
