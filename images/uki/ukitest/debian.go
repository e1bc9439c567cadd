// Package ukitest brings the real stub and the real kernel of Debian trixie into
// tests, from the mirror that this machine uses. Only tests may call it.
package ukitest

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"portcullis/images/deb"
)

// Debian is what tests take out of the packages.
type Debian struct {
	Stub   []byte // linuxx64.efi.stub of systemd-boot-efi
	Kernel []byte // vmlinuz of linux-image-cloud-amd64
}

var (
	stubName   = regexp.MustCompile(`^/usr/lib/systemd/boot/efi/linuxx64\.efi\.stub$`)
	kernelName = regexp.MustCompile(`^/boot/vmlinuz-[^/]+$`)
	stubOwner  = regexp.MustCompile(`^systemd-boot-efi$`)
	imageOwner = regexp.MustCompile(`^linux-image-[0-9].*-cloud-amd64$`)
)

var load = sync.OnceValues(fetch)

// Get returns the files; they are fetched once a process and kept in the
// user's cache directory between runs.
func Get(t testing.TB) Debian {
	t.Helper()
	d, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fetch() (Debian, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cache, err := os.UserCacheDir()
	if err != nil {
		return Debian{}, err
	}
	store := &deb.Store{Dir: filepath.Join(cache, "portcullis", "test-packages")}
	if err := os.MkdirAll(store.Dir, 0o755); err != nil {
		return Debian{}, err
	}
	// Tests of several packages run at once and apt's lists have one owner.
	unlock, err := lock(filepath.Join(store.Dir, "lock"))
	if err != nil {
		return Debian{}, err
	}
	defer unlock()
	request := deb.Request{Suite: "trixie", Arch: "amd64", Components: []string{"main"},
		Packages: []string{"systemd-boot-efi", "linux-image-cloud-amd64"}}
	resolved, err := store.Resolve(ctx, request)
	if err != nil {
		return Debian{}, err
	}
	wanted := &deb.Lock{}
	*wanted = *resolved
	wanted.Packages = nil
	for _, p := range resolved.Packages {
		if stubOwner.MatchString(p.Name) || imageOwner.MatchString(p.Name) {
			wanted.Packages = append(wanted.Packages, p)
		}
	}
	if err := store.Fetch(ctx, request, wanted, nil); err != nil {
		return Debian{}, err
	}
	var d Debian
	for _, p := range wanted.Packages {
		err := deb.Walk(ctx, store.Path(p), func(h *tar.Header, r io.Reader) error {
			var err error
			switch {
			case stubName.MatchString(h.Name):
				d.Stub, err = io.ReadAll(r)
			case kernelName.MatchString(h.Name):
				d.Kernel, err = io.ReadAll(r)
			}
			return err
		})
		if err != nil {
			return Debian{}, err
		}
	}
	return d, nil
}
