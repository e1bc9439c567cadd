package debroot

import (
	"archive/tar"
	"context"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/images/deb"
	"portcullis/images/recipe"
)

// boardDir is where the board's firmware lies in its package.
const boardDir = "/usr/lib/raspi-firmware/"

// unpacker fills the directory of a Kernel.
type unpacker struct {
	ctx      context.Context
	store    *deb.Store
	packages *Packages
	recipe   *recipe.Recipe
	dir      string
	release  string
}

func (u *unpacker) all() error {
	if err := u.kernel(); err != nil {
		return err
	}
	return u.rest()
}

// rest unpacks what goes with the kernel, and indexes its modules.
func (u *unpacker) rest() error {
	for _, step := range []func() error{u.firmware, u.board, u.stub} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, t := range u.recipe.Kernel.DeviceTrees {
		if _, err := os.Stat(filepath.Join(u.dir, "dtb", t)); err != nil {
			return Refuse(ReasonMissing, "device tree %s is not in the kernel package", t)
		}
	}
	if err := depmod(u.ctx, u.dir, u.release); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(u.dir, "release"), []byte(u.release), 0o644)
}

func (u *unpacker) walk(packages []deb.Package, f func(h *tar.Header, r io.Reader) error) error {
	for _, p := range packages {
		if err := deb.Walk(u.ctx, u.store.Path(p), f); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) kernel() error {
	err := u.walk(u.packages.Kernel, func(h *tar.Header, r io.Reader) error {
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		if v := kernelRelease(h.Name); v != "" {
			if u.release != "" {
				return Refuse(ReasonOptions, "two kernels: %s and %s", u.release, v)
			}
			u.release = v
			return write(filepath.Join(u.dir, "vmlinuz"), r)
		}
		if t := deviceTree(h.Name); t != "" {
			if slices.Contains(u.recipe.Kernel.DeviceTrees, t) {
				return write(filepath.Join(u.dir, "dtb", t), r)
			}
			return nil
		}
		name := strings.TrimPrefix(h.Name, "/usr")
		if strings.HasPrefix(name, "/lib/modules/") {
			return write(filepath.Join(u.dir, name), r)
		}
		return nil
	})
	if err == nil && u.release == "" {
		err = Refuse(ReasonMissing, "%s brings no kernel", u.recipe.Kernel.Package)
	}
	return err
}

// kernelRelease returns the release of which p is the kernel itself, "" of other
// files. Split kernels lie beside their modules.
func kernelRelease(p string) string {
	if v, ok := strings.CutPrefix(p, "/boot/vmlinuz-"); ok {
		return v
	}
	if v, ok := strings.CutPrefix(p, "/usr/lib/modules/"); ok && path.Base(v) == "vmlinuz" && strings.Count(v, "/") == 1 {
		return path.Dir(v)
	}
	return ""
}

// deviceTree returns vendor/name of a device tree's path in a kernel package,
// "" of other files. They lie in /usr/lib/linux-image-RELEASE/, with split
// kernels in /usr/lib/modules/RELEASE/dtb/.
func deviceTree(p string) string {
	if !strings.HasSuffix(p, ".dtb") {
		return ""
	}
	return path.Join(path.Base(path.Dir(p)), path.Base(p))
}

func (u *unpacker) firmware() error {
	return u.walk(u.packages.Firmware, func(h *tar.Header, r io.Reader) error {
		name, ok := strings.CutPrefix(strings.TrimPrefix(h.Name, "/usr"), "/lib/firmware/")
		if !ok {
			return nil
		}
		to := filepath.Join(u.dir, "firmware", name)
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
}

func (u *unpacker) board() error {
	return u.walk(u.packages.Boot, func(h *tar.Header, r io.Reader) error {
		name, ok := strings.CutPrefix(h.Name, boardDir)
		if !ok || h.Typeflag != tar.TypeReg || strings.Contains(name, "/") {
			return nil
		}
		return write(filepath.Join(u.dir, "board", name), r)
	})
}

func (u *unpacker) stub() error {
	if u.packages.Stub.Name == "" {
		return nil
	}
	want := stubNames[u.packages.Request.Arch]
	found := false
	err := u.walk([]deb.Package{u.packages.Stub}, func(h *tar.Header, r io.Reader) error {
		if h.Name != path.Join(stubDir, want) {
			return nil
		}
		found = true
		return write(filepath.Join(u.dir, "stub.efi"), r)
	})
	if err == nil && !found {
		err = Refuse(ReasonMissing, "%s has no %s", u.packages.Stub, want)
	}
	return err
}
