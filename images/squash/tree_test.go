package squash

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A package that still ships /lib/x lands in /usr/lib/x, as on a merged system.
func TestPutFollowsTheUsrMerge(t *testing.T) {
	tree := NewTree(day)
	must(t, tree.Link("/lib", "usr/lib"))
	must(t, tree.WriteFile("/lib/a/b.so", 0o644, []byte("x")))
	must(t, tree.Mkdir("/lib", 0o755)) // the directory entry of such a package
	if n := tree.Get("/usr/lib/a/b.so"); n == nil || n.Kind != File {
		t.Fatal("the file is not where the link points")
	}
	if n := tree.Get("/lib"); n.Kind != Symlink {
		t.Fatal("the link became a directory")
	}
	want := []string{"/", "/lib", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/a/b.so"}
	if got := tree.Paths(); !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v", got)
	}
}

func TestPutRefusesAChangeOfKind(t *testing.T) {
	tree := NewTree(day)
	must(t, tree.Mkdir("/etc/x", 0o755))
	must(t, tree.WriteFile("/etc/f", 0o644, nil))
	if tree.WriteFile("/etc/x", 0o644, nil) == nil {
		t.Error("a directory became a file")
	}
	if tree.Mkdir("/etc/f", 0o755) == nil {
		t.Error("a file became a directory")
	}
	if tree.WriteFile("/etc/f/below", 0o644, nil) == nil {
		t.Error("a file lies below a file")
	}
	must(t, tree.Link("/a", "b"))
	must(t, tree.Link("/b", "a"))
	if err := tree.WriteFile("/a/x", 0o644, nil); !errors.Is(err, ErrLoop) {
		t.Errorf("a loop of links: %v", err)
	}
	if _, err := tree.Read("/a"); !errors.Is(err, ErrLoop) {
		t.Errorf("reading through a loop: %v", err)
	}
}

func TestReadFollowsLinks(t *testing.T) {
	tree := NewTree(day)
	must(t, tree.WriteFile("/usr/lib/os-release", 0o644, []byte("ID=debian")))
	must(t, tree.Link("/etc/os-release", "../usr/lib/os-release"))
	b, err := tree.Read("/etc/os-release")
	if err != nil || string(b) != "ID=debian" {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := tree.Read("/etc"); err == nil {
		t.Error("a directory was read")
	}
	if _, err := tree.Read("/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	tree.Remove("/usr")
	if tree.Get("/usr/lib/os-release") != nil {
		t.Error("something is left below what was removed")
	}
	tree.Remove("/")
	if tree.Get("/etc") == nil {
		t.Error("the root was removed")
	}
}

// No device, socket or FIFO of a package reaches an image.
func TestFromHeaderLeavesDevicesOut(t *testing.T) {
	for _, kind := range []byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeLink} {
		if _, ok := FromHeader(&tar.Header{Typeflag: kind}, nil); ok {
			t.Errorf("entry of type %c was taken", kind)
		}
	}
	n, ok := FromHeader(&tar.Header{Typeflag: tar.TypeReg, Mode: 0o104755, Uid: 7, ModTime: day.Add(time.Millisecond)}, Bytes("x"))
	if !ok || n.Mode != 0o4755 || n.UID != 7 || !n.Time.Equal(day) {
		t.Fatalf("got %+v", n)
	}
}

func TestSectionReadsItsPart(t *testing.T) {
	s := Section{File: strings.NewReader("0123456789"), Offset: 2, Length: 3}
	b, err := io.ReadAll(s.Open())
	if err != nil || string(b) != "234" || s.Size() != 3 {
		t.Fatalf("%q %v", b, err)
	}
}

func sample(t *testing.T) *Tree {
	tree := NewTree(day)
	must(t, tree.WriteFile("/usr/bin/tool", 0o4755, bytes.Repeat([]byte("program "), 5000)))
	must(t, tree.WriteFile("/etc/empty", 0o600, nil))
	must(t, tree.Link("/bin", "usr/bin"))
	must(t, tree.Put("/var/mail", &Node{Kind: Dir, Mode: 0o2775, GID: 8, Time: day}))
	return tree
}

func digest(t *testing.T, path string) [32]byte {
	b, err := os.ReadFile(path)
	must(t, err)
	return sha256.Sum256(b)
}

func TestWriteIsTheSameTwiceAndHoldsTheTree(t *testing.T) {
	dir := t.TempDir()
	o := Options{Level: 3, BlockSize: 131072}
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	var last, total int64
	must(t, sample(t).Write(context.Background(), a, o, func(d, n int64) { last, total = d, n }))
	t.Setenv("SOURCE_DATE_EPOCH", "5") // what a packager's environment may hold
	must(t, sample(t).Write(context.Background(), b, o, nil))
	if digest(t, a) != digest(t, b) {
		t.Fatal("the same tree made different bytes")
	}
	if total != 40000 || last != total {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	other := sample(t)
	must(t, other.WriteFile("/etc/empty", 0o644, nil))
	must(t, other.Write(context.Background(), b, o, nil))
	if digest(t, a) == digest(t, b) {
		t.Fatal("another mode made the same bytes")
	}
	out, err := utc("unsquashfs", "-lln", a).Output()
	if err != nil {
		t.Fatalf("unsquashfs (apt-get install squashfs-tools): %v", err)
	}
	listing := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{
		"-rwsr-xr-x 0/0 40000 2026-01-02 03:04 squashfs-root/usr/bin/tool", "-rw------- 0/0 0 2026-01-02",
		"drwxrwsr-x 0/8", "squashfs-root/bin -> usr/bin",
	} {
		if !strings.Contains(listing, want) {
			t.Errorf("listing lacks %q:\n%s", want, out)
		}
	}
	// The moment of the build is nowhere, not even in the root directory.
	if n := strings.Count(listing, "2026-01-02 03:04"); n != 9 {
		t.Errorf("%d of 9 entries have the tree's time:\n%s", n, out)
	}
}

func utc(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	return cmd
}

// brokenContent ends before its size: a file that was cut while it was read.
type brokenContent struct{}

func (brokenContent) Size() int64     { return 10 }
func (brokenContent) Open() io.Reader { return strings.NewReader("short") }

func TestWriteRefusesContentThatEndsEarly(t *testing.T) {
	tree := sample(t)
	must(t, tree.Put("/x", &Node{Kind: File, Mode: 0o644, Time: day, Content: brokenContent{}}))
	if err := tree.Write(context.Background(), filepath.Join(t.TempDir(), "out"), Options{Level: 1, BlockSize: 4096}, nil); err == nil {
		t.Fatal("an image with a cut file was made")
	}
}
