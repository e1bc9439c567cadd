package piinit

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCleanIsWhatE2fsckCallsClean: of every state that debugfs can make, the same is
// said as e2fsck says.
func TestCleanIsWhatE2fsckCallsClean(t *testing.T) {
	run := func(name string, args ...string) (string, error) {
		b, err := exec.Command(name, args...).CombinedOutput()
		return string(b), err
	}
	for name, c := range map[string]struct {
		damage [][]string
		clean  bool
	}{
		"fresh":             {nil, true},
		"not unmounted":     {[][]string{{"set_super_value", "state", "0"}}, false},
		"known error":       {[][]string{{"set_super_value", "state", "3"}}, false},
		"journal to replay": {[][]string{{"feature", "needs_recovery"}}, false},
		"mounted too often": {[][]string{{"set_super_value", "max_mnt_count", "3"}, {"set_super_value", "mnt_count", "3"}}, false},
		"mounted once":      {[][]string{{"set_super_value", "max_mnt_count", "3"}, {"set_super_value", "mnt_count", "1"}}, true},
	} {
		path := filepath.Join(t.TempDir(), "fs")
		if out, err := run("/sbin/mkfs.ext4", "-q", "-F", path, "8M"); err != nil {
			t.Fatalf("mkfs.ext4 (package e2fsprogs): %v\n%s", err, out)
		}
		for _, d := range c.damage {
			request := d[0]
			for _, w := range d[1:] {
				request += " " + w
			}
			if out, err := run("/sbin/debugfs", "-w", "-R", request, path); err != nil {
				t.Fatalf("debugfs %s: %v\n%s", request, err, out)
			}
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := cleanExt4(f); got != c.clean {
			t.Errorf("%s: clean=%t", name, got)
		}
		f.Close()
		out, _ := run("/sbin/e2fsck", "-n", path)
		if theirs := strings.Contains(out, ": clean,") && !strings.Contains(out, "journal recovery"); theirs != c.clean {
			t.Errorf("%s: e2fsck says %q", name, out)
		}
	}
}

func TestCleanNeedsAWholeSuperblock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fs")
	if out, err := exec.Command("/sbin/mkfs.ext4", "-q", "-F", path, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4 (package e2fsprogs): %v\n%s", err, out)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{superAt + 4, superAt + superMagic, superAt + 0x100, superAt + superChecksum} {
		b := bytes.Clone(whole)
		b[at] ^= 0x40
		if cleanExt4(bytes.NewReader(b)) {
			t.Errorf("byte %d changed: clean", at)
		}
	}
	if cleanExt4(bytes.NewReader(whole[:1500])) || cleanExt4(bytes.NewReader(nil)) {
		t.Error("half a superblock is clean")
	}
}

func FuzzCleanExt4(f *testing.F) {
	f.Add(make([]byte, superAt+superSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if cleanExt4(bytes.NewReader(b)) && len(b) < superAt+superSize {
			t.Error("clean without a superblock")
		}
	})
}
