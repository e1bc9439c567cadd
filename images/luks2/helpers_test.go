package luks2

import (
	"bytes"
	"crypto/rand"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// memory is a device in memory.
type memory []byte

func (m memory) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(b, off)
}

func (m memory) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], b), nil
}

func (m memory) Sync() error { return nil }

const (
	smallOffset = 1 << 20
	smallSize   = smallOffset + 64<<10
)

var (
	chipPass = []byte("Zm9yIHRoZSBjaGlwIHNsb3QsIGFzIHN5c3RlbWQgZG9lcw==")
	// cheap is argon2id that costs a test nothing.
	cheap = KDF{Type: "argon2id", Memory: 64, Time: 1, Lanes: 1}
)

func randomKey(t testing.TB) []byte {
	t.Helper()
	k := make([]byte, VolumeKeySize)
	if _, err := rand.Read(k); err != nil {
		t.Fatal(err)
	}
	return k
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// small makes a volume with a chip slot and a token for it.
func small(t testing.TB) (memory, *Header, []byte) {
	t.Helper()
	d, key := make(memory, smallSize), randomKey(t)
	h := must[*Header](t)(Format(d, smallSize, Options{PayloadOffset: smallOffset}, key))
	slot := must[int](t)(h.AddSlot(d, key, chipPass, ForChip()))
	must[int](t)(h.SetToken(-1, token("test", slot, "x")))
	check(t, h.Write(d))
	return d, h, key
}

// onFile makes a volume in a file, with the Pi's own offset.
func onFile(t testing.TB, o Options, payload int64) (*os.File, int64, *Header, []byte) {
	t.Helper()
	if o.PayloadOffset == 0 {
		o.PayloadOffset = 16 << 20
	}
	f := must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "volume")))
	t.Cleanup(func() { f.Close() })
	size := o.PayloadOffset + payload
	check(t, f.Truncate(size))
	key := randomKey(t)
	return f, size, must[*Header](t)(Format(f, size, o, key)), key
}

// cryptsetup runs Debian's program, the judge of these tests.
func cryptsetup(t testing.TB, stdin []byte, args ...string) string {
	t.Helper()
	out, err := tryCryptsetup(t, stdin, args...)
	if err != nil {
		t.Fatalf("cryptsetup %q: %v\n%s", args, err, out)
	}
	return out
}

func tryCryptsetup(t testing.TB, stdin []byte, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("cryptsetup")
	if err != nil {
		t.Fatalf("%v: install the package cryptsetup-bin", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// opens is cryptsetup's word on whether a passphrase opens a volume.
func opens(t testing.TB, path string, pass []byte, more ...string) {
	t.Helper()
	cryptsetup(t, pass, append([]string{"open", "--test-passphrase", "--type", "luks2", "--key-file", "-", path}, more...)...)
}
