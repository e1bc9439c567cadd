package enginedisk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

const mib = 1 << 20

func TestSize(t *testing.T) {
	for _, c := range []struct {
		name             string
		size, held, free int64
		want             int64 // 0: no room
	}{
		{"a new file on a small card", 0, 0, 1000 * mib, 500 * mib},
		{"a new file on a large card", 0, 0, 100 << 30, MaxSize},
		{"what is there stays, also where the volume is full", 300 * mib, 300 * mib, 0, 300 * mib},
		{"a file with holes is made anew", 300 * mib, 100 * mib, 900 * mib, 500 * mib},
		{"one that was cut short", 3 * mib, 3 * mib, 1000 * mib, 501 * mib},
		{"one of half a unit", 300*mib + 512, 301 * mib, 299 * mib, 300 * mib},
		{"larger than any of ours", 20 << 30, 20 << 30, 0, 10 << 30},
		{"no room", 0, 0, 2*MinSize - 1, 0},
		{"just enough", 0, 0, 2 * MinSize, MinSize},
	} {
		got, err := sizeOf(c.size, c.held, c.free)
		var no *Error
		if got != c.want || (c.want == 0) != (errors.As(err, &no) && no.Reason == ReasonSpace) {
			t.Errorf("%s: %d MiB, %v; want %d MiB", c.name, got/mib, err, c.want/mib)
		}
	}
}

// What has the file's name and is none is not written to.
func TestAttack_FileThatIsNone(t *testing.T) {
	dir := t.TempDir()
	elsewhere := filepath.Join(dir, "elsewhere")
	if err := os.WriteFile(elsewhere, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "disk")
	for name, put := range map[string]func() error{
		"link":      func() error { return os.Symlink(elsewhere, path) },
		"directory": func() error { return os.Mkdir(path, 0o700) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		f, _, err := reserve(path)
		var no *Error
		if !errors.As(err, &no) || no.Reason != ReasonDisk {
			t.Errorf("%s: %v", name, err)
			f.Close()
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(elsewhere); err != nil || string(b) != "theirs" {
		t.Errorf("%q %v", b, err)
	}
}

func TestLinkLeadsToTheNewDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	for _, d := range []string{"/dev/dm-3", "/dev/dm-4"} {
		if err := link(path, d); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(path); err != nil || got != d {
			t.Errorf("%s: %s %v", d, got, err)
		}
	}
}
