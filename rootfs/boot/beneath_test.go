package boot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAttackLinksOnAVolume: a volume that somebody else wrote leads nowhere.
func TestAttackLinksOnAVolume(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "volume")
	for _, d := range []string{dir, filepath.Join(root, "secret"), filepath.Join(dir, "real")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"secret/key": "key", "volume/real/file": "file", "volume/large": strings.Repeat("x", 101)} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"absolute": root + "/secret/key", "relative": "../secret/key", "inside": "real/file", "dir": "../secret", "link": "real", "none": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"absolute", "relative", "inside", "dir/key", "link/file", "../secret/key", "none", "fifo", "real", "large", "/etc/hostname"} {
		if b, err := ReadBeneath(dir, name, 100); err == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
	if b, err := ReadBeneath(dir, "real/file", 100); err != nil || string(b) != "file" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := ReadBeneath(dir, "missing", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"dir", "link", "fifo", "large", "none"} {
		if f, err := DirBeneath(dir, name, 0o755); err == nil {
			t.Errorf("%s is taken for a directory: %s", name, f.Name())
		}
	}
	for range 2 {
		f, err := DirBeneath(dir, "new", 0o710)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if _, err := os.Lstat(filepath.Join(root, "volume/nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory was made through a link: %v", err)
	}
}

func TestCryptTable(t *testing.T) {
	key := bytes.Repeat([]byte{0xab}, 64)
	got := string(cryptTable(8, 5, Crypt{Offset: 16 << 20, Size: 1 << 30, SectorSize: 4096}, key))
	if want := "aes-xts-plain64 " + strings.Repeat("ab", 64) + " 0 8:5 32768 1 sector_size:4096"; got != want {
		t.Errorf("%q instead of %q", got, want)
	}
	for _, c := range []Crypt{{Size: 4096}, {Size: 4097, SectorSize: 4096}, {SectorSize: 4096}, {Size: 4096, Offset: 512, SectorSize: 4096}} {
		if p, err := OpenCrypt("x", "/dev/null", c, key); ReasonOf(err) != ReasonMapper {
			t.Errorf("%+v: %s, %v", c, p, err)
		}
	}
}

// TestKeyStaysInOneBuffer: the request to the kernel is made in the memory that is
// cleared after it.
func TestKeyStaysInOneBuffer(t *testing.T) {
	d := newDM("name", 0)
	before := &d.b[0]
	d.addTarget(8, "crypt", cryptTable(8, 5, Crypt{Size: 4096, SectorSize: 4096}, bytes.Repeat([]byte{1}, 64)))
	if &d.b[0] != before {
		t.Error("the request grew into new memory")
	}
}
