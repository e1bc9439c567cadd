// Package debtest gives tests that boot a machine the kernel of a Debian package.
// Answers of the archive and packages are kept in the cache of the image builder:
// only the first run asks for them.
package debtest

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"portcullis/images/deb"
)

// CloudKernel returns trixie's cloud kernel for amd64 and the named modules,
// unpacked. cache is the builder's directory when the environment names none.
func CloudKernel(t testing.TB, cache string, names []string) (kernel []byte, modules map[string][]byte) {
	t.Helper()
	if dir := os.Getenv("PORTCULLIS_CACHE"); dir != "" {
		cache = dir
	}
	cache, err := filepath.Abs(cache)
	if err == nil {
		err = os.MkdirAll(cache, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	store := &deb.Store{Dir: filepath.Join(cache, "deb")}
	modules = map[string][]byte{}
	for _, p := range fetch(t, store, filepath.Join(cache, "hpcinit-test-kernel.json")).Packages {
		err := deb.Walk(t.Context(), store.Path(p), func(h *tar.Header, r io.Reader) (err error) {
			name, isModule := strings.CutSuffix(filepath.Base(h.Name), ".ko.xz")
			switch {
			case strings.HasPrefix(h.Name, "/boot/vmlinuz-"):
				kernel, err = io.ReadAll(r)
			case isModule && slices.Contains(names, name):
				if r, err = xz.NewReader(r); err == nil {
					modules[name], err = io.ReadAll(r)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(modules) != len(names) || kernel == nil {
		t.Fatalf("the kernel package has %d of the %d modules", len(modules), len(names))
	}
	return kernel, modules
}

// fetch keeps the archive's answer in file. When the archive has moved on since, it is asked again.
func fetch(t testing.TB, store *deb.Store, file string) *deb.Lock {
	t.Helper()
	req := deb.Request{Suite: "trixie", Arch: "amd64", Components: []string{"main"}, Packages: []string{"linux-image-cloud-amd64"}}
	if b, err := os.ReadFile(file); err == nil {
		if l, err := deb.ParseLock(b); err == nil && store.Fetch(t.Context(), req, l, nil) == nil {
			return l
		}
	}
	l, err := resolve(t.Context(), store, req)
	if err == nil {
		err = os.WriteFile(file, l.Encode(), 0o644)
	}
	if err == nil {
		err = store.Fetch(t.Context(), req, l, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// resolve asks the archive which kernel the package stands for.
func resolve(ctx context.Context, store *deb.Store, req deb.Request) (*deb.Lock, error) {
	all, err := store.Resolve(ctx, req)
	if err != nil {
		return nil, err
	}
	l := &deb.Lock{}
	for _, p := range all.Packages {
		if strings.HasPrefix(p.Name, "linux-image-6") {
			l.Packages = append(l.Packages, p)
		}
	}
	return l, nil
}
