// Package systemdtest gives tests the real systemd of Debian: its programs and their
// libraries as files in a directory to change the root to. Nothing is
// installed. Only tests may call it.
package systemdtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/images/deb"
	"portcullis/images/debroot"
)

// Suites whose systemd tests run.
const (
	Trixie   = "trixie"   // systemd 257
	Bookworm = "bookworm" // systemd 252
)

var packages = map[string][]string{
	// The last five are loaded by name at run time: no package depends on them.
	Trixie: {"systemd-cryptsetup", "cryptsetup-bin", "libtss2-esys-3.0.2-0t64", "libtss2-rc0t64", "libtss2-mu-4.0.1-0t64",
		"libtss2-tctildr0t64", "libtss2-tcti-swtpm0t64"},
	Bookworm: {"systemd", "libtss2-esys-3.0.2-0", "libtss2-rc0", "libtss2-mu0", "libtss2-tctildr0", "libtss2-tcti-swtpm0"},
}

// prepare returns the tree of a suite, which it makes the first time. It is kept
// in the build cache: remove it there to have newer packages.
func prepare(ctx context.Context, suite string) (string, error) {
	cache, err := debroot.DefaultCache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "test-systemd")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Tests of several packages run at once and apt's lists have one owner.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	request := deb.Request{Suite: suite, Arch: "amd64", Components: []string{"main"}, Packages: packages[suite]}
	sum := sha256.Sum256([]byte(strings.Join(request.Packages, " ")))
	root := filepath.Join(dir, suite+"-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	store := &deb.Store{Dir: dir}
	resolved, err := store.Resolve(ctx, request)
	if err != nil {
		return "", err
	}
	if err := store.Fetch(ctx, request, resolved, nil); err != nil {
		return "", err
	}
	making := root + ".making"
	if err := os.RemoveAll(making); err != nil {
		return "", err
	}
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "tmp", "run", "proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(making, d), 0o755); err != nil {
			return "", err
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(making, d)); err != nil {
			return "", err
		}
	}
	for _, p := range resolved.Packages {
		if err := unpack(ctx, store.Path(p), making); err != nil {
			return "", fmt.Errorf("%s: %w", p, err)
		}
	}
	return root, os.Rename(making, root)
}

func unpack(ctx context.Context, path, root string) error {
	return deb.Walk(ctx, path, func(h *tar.Header, r io.Reader) error {
		name := h.Name
		for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} { // as before usr was merged
			if strings.HasPrefix(name, d) {
				name = "/usr" + name
			}
		}
		if strings.HasPrefix(name, "/usr/share/") || !strings.HasPrefix(name, "/usr/") {
			return nil
		}
		to := filepath.Join(root, name)
		switch h.Typeflag {
		case tar.TypeDir:
			return os.MkdirAll(to, 0o755)
		case tar.TypeSymlink:
			return os.Symlink(h.Linkname, to)
		case tar.TypeReg:
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.FileInfo().Mode().Perm())
			if err != nil {
				return err
			}
			_, err = io.Copy(f, r)
			return errors.Join(err, f.Close())
		}
		return nil
	})
}

// World is a directory in which systemd's programs run, with a TPM.
type World struct {
	Chip *tpmtest.Chip
	Dir  string // of the test, seen by the programs as /run/test
	root string
}

// Start gives a test the systemd of a suite and a chip.
func Start(t testing.TB, suite string) *World {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root, err := prepare(ctx, suite)
	if err != nil {
		t.Fatalf("systemd of %s: %v", suite, err)
	}
	return &World{Chip: tpmtest.Start(t), Dir: t.TempDir(), root: root}
}

// Signature is the file of Dir that the programs find as the running system's
// policy signatures.
const Signature = "tpm2-pcr-signature.json"

// Path is where the programs see a file of Dir.
func (w *World) Path(name string) string { return "/run/test/" + name }

// Run runs a program of the tree in a mount namespace of its own, with Dir, the
// chip's socket and what programs need of /proc and /dev in place. env is
// added to the environment.
func (w *World) Run(t testing.TB, env []string, program string, args ...string) (string, error) {
	t.Helper()
	// The shell is this machine's: it makes the mounts, then gives way.
	script := `set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$ROOT/run"; mkdir "$ROOT/run/test" "$ROOT/run/tpm" "$ROOT/run/systemd"
if [ -e "$DIR/` + Signature + `" ]; then cp "$DIR/` + Signature + `" "$ROOT/run/systemd/"; fi
mount --bind "$DIR" "$ROOT/run/test"; mount --bind "$TPM" "$ROOT/run/tpm"
mount -t tmpfs tmpfs "$ROOT/dev"; mount -t tmpfs tmpfs "$ROOT/tmp"
for d in null zero random urandom; do : >"$ROOT/dev/$d"; mount --bind /dev/$d "$ROOT/dev/$d"; done
mount -t proc proc "$ROOT/proc"
exec chroot "$ROOT" "$@"`
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "sh", "-c", script, "sh", program}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "ROOT=" + w.root, "DIR=" + w.Dir, "TPM=" + filepath.Dir(w.Chip.Path),
		"SYSTEMD_LOG_LEVEL=info", "LC_ALL=C"}
	cmd.Env = append(cmd.Env, env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// TCTI is how the programs reach the chip.
func (w *World) TCTI() string { return "swtpm:path=/run/tpm/" + filepath.Base(w.Chip.Path) }
