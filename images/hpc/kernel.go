package hpc

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"portcullis/images/deb"
	"portcullis/images/recipe"
)

// stubPath is the UEFI stub inside its package.
const stubPath = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// kernel is the unpacked kernel with its module index.
type kernel struct {
	dir     string
	release string // uname -r
	modules *modules
}

func (k *kernel) image() string       { return filepath.Join(k.dir, "vmlinuz") }
func (k *kernel) stub() string        { return filepath.Join(k.dir, "stub.efi") }
func (k *kernel) firmwareDir() string { return filepath.Join(k.dir, "firmware") }
func (k *kernel) moduleTree() string  { return filepath.Join(k.dir, "lib", "modules", k.release) }

// kernel unpacks kernel, stub and firmware into the cache.
func (b *builder) kernel(ctx context.Context) (*kernel, error) {
	k := newKey("kernel", "deb").add("stub", b.stubDeb.SHA256)
	for _, p := range b.kernelDebs {
		k.add("kernel", p.SHA256)
	}
	for _, p := range b.firmwareDebs {
		k.add("firmware", p.SHA256)
	}
	dir, _, err := b.stage(ctx, "kernel", k, func(dir string) error {
		if err := b.fetch(ctx); err != nil {
			return err
		}
		done := b.begin("kernel", b.recipe.Kernel.Package)
		defer done(false)
		return b.unpackKernel(ctx, dir)
	})
	if err != nil {
		return nil, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	out := &kernel{dir: dir, release: string(release)}
	if out.modules, err = readModules(out.moduleTree()); err != nil {
		return nil, err
	}
	return out, nil
}

func (b *builder) unpackKernel(ctx context.Context, dir string) error {
	release := ""
	for _, p := range b.kernelDebs {
		err := deb.Walk(ctx, b.store.Path(p), func(h *tar.Header, r io.Reader) error {
			if v, ok := strings.CutPrefix(h.Name, "/boot/vmlinuz-"); ok && h.Typeflag == tar.TypeReg {
				if release != "" {
					return refuse(ReasonOptions, "two kernels: %s and %s", release, v)
				}
				release = v
				return write(filepath.Join(dir, "vmlinuz"), r)
			}
			name := strings.TrimPrefix(h.Name, "/usr")
			if strings.HasPrefix(name, "/lib/modules/") && h.Typeflag == tar.TypeReg {
				return write(filepath.Join(dir, name), r)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if release == "" {
		return refuse(ReasonMissing, "%s brings no kernel", b.recipe.Kernel.Package)
	}
	for _, p := range b.firmwareDebs {
		err := deb.Walk(ctx, b.store.Path(p), func(h *tar.Header, r io.Reader) error {
			name, ok := strings.CutPrefix(strings.TrimPrefix(h.Name, "/usr"), "/lib/firmware/")
			if !ok {
				return nil
			}
			to := filepath.Join(dir, "firmware", name)
			switch h.Typeflag {
			case tar.TypeReg:
				return write(to, r)
			case tar.TypeSymlink:
				if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
					return err
				}
				return os.Symlink(h.Linkname, to)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	found := false
	err := deb.Walk(ctx, b.store.Path(b.stubDeb), func(h *tar.Header, r io.Reader) error {
		if h.Name != stubPath {
			return nil
		}
		found = true
		return write(filepath.Join(dir, "stub.efi"), r)
	})
	if err != nil {
		return err
	}
	if !found {
		return refuse(ReasonMissing, "%s has no %s", b.stubDeb, path.Base(stubPath))
	}
	if err := depmod(ctx, dir, release); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "release"), []byte(release), 0o644)
}

func write(to string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// pickFirmware returns the firmware files that the modules name and the
// packages have: path below /lib/firmware → content. A link is followed, so
// that the name the driver asks for is there.
func (k *kernel) pickFirmware(ctx context.Context, r *recipe.Recipe, paths []string) (map[string][]byte, error) {
	out := map[string][]byte{}
	if len(r.Kernel.Firmware) == 0 {
		return out, nil
	}
	names, err := k.modules.firmware(ctx, paths)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if path.Clean("/"+n) != "/"+n {
			continue
		}
		matches := []string{n}
		if strings.ContainsAny(n, "*?[") { // some drivers name a pattern
			found, err := filepath.Glob(filepath.Join(k.firmwareDir(), n))
			if err != nil {
				continue
			}
			matches = nil
			for _, f := range found {
				rel, err := filepath.Rel(k.firmwareDir(), f)
				if err != nil {
					return nil, err
				}
				matches = append(matches, rel)
			}
		}
		for _, m := range matches {
			b, err := k.readFirmware(m)
			if err != nil {
				return nil, err
			}
			if b != nil {
				out[m] = b
			}
		}
	}
	return out, nil
}

// readFirmware returns nil where no package has the file: drivers name more
// than is published, and ask for the older ones when the newest is absent.
func (k *kernel) readFirmware(name string) ([]byte, error) {
	root, err := os.OpenRoot(k.firmwareDir())
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("firmware %s: %w", name, err)
	}
	defer f.Close()
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, f); err != nil {
		return nil, fmt.Errorf("firmware %s: %w", name, err)
	}
	return buf.Bytes(), nil
}
