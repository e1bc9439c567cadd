package debroot

import (
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

// stubDir has the UEFI stubs inside their package.
const stubDir = "/usr/lib/systemd/boot/efi"

// stubNames are the stubs of Debian's architectures.
var stubNames = map[string]string{"amd64": "linuxx64.efi.stub", "arm64": "linuxaa64.efi.stub"}

// Kernel is the unpacked kernel with its module index.
type Kernel struct {
	Dir     string // its name is the digest of all that is in it
	Release string // uname -r
	Modules *Modules

	builtIn []string // firmware that drivers inside of an own kernel ask for
}

// Image is the file of the kernel itself, as its package has it.
func (k *Kernel) Image() string { return filepath.Join(k.Dir, "vmlinuz") }

// Stub is the file of the UEFI stub; absent where the recipe names none.
func (k *Kernel) Stub() string { return filepath.Join(k.Dir, "stub.efi") }

// ModuleTree is the directory that modules and their index are in.
func (k *Kernel) ModuleTree() string { return filepath.Join(k.Dir, "lib", "modules", k.Release) }

// DeviceTree is the file of a device tree, by its name below the package's directory of them.
func (k *Kernel) DeviceTree(name string) string {
	return filepath.Join(k.Dir, "dtb", filepath.FromSlash(name))
}

// BoardFirmware is a file of the board's firmware package.
func (k *Kernel) BoardFirmware(name string) string { return filepath.Join(k.Dir, "board", name) }

func (k *Kernel) firmwareDir() string { return filepath.Join(k.Dir, "firmware") }

// Kernel unpacks kernel, stub, device trees and firmware into the cache.
func (m *Maker) Kernel(ctx context.Context, p *Packages, r *recipe.Recipe) (*Kernel, error) {
	k := NewKey("kernel", "deb").Add("stub", p.Stub.SHA256).Add("device trees", r.Kernel.DeviceTrees)
	for _, list := range [][]deb.Package{p.Kernel, p.Firmware, p.Boot} {
		for _, d := range list {
			k.Add("package", d.SHA256)
		}
	}
	dir, _, err := m.Stage(ctx, "kernel", k, func(dir string) error {
		if err := m.Fetch(ctx, p); err != nil {
			return err
		}
		done := m.Begin("kernel", r.Kernel.Package)
		defer done(false)
		u := &unpacker{ctx: ctx, store: m.Store, packages: p, recipe: r, dir: dir}
		return u.all()
	})
	if err != nil {
		return nil, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	out := &Kernel{Dir: dir, Release: string(release)}
	if out.Modules, err = ReadModules(out.ModuleTree()); err != nil {
		return nil, err
	}
	return out, nil
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

// PickFirmware returns the firmware files that the modules name and the
// packages have: path below /lib/firmware → content. A link is followed, so
// that the name the driver asks for is there.
func (k *Kernel) PickFirmware(ctx context.Context, r *recipe.Recipe, paths []string) (map[string][]byte, error) {
	out := map[string][]byte{}
	if len(r.Kernel.Firmware) == 0 {
		return out, nil
	}
	names, err := k.Modules.Firmware(ctx, paths)
	if err != nil {
		return nil, err
	}
	for _, n := range append(names, k.builtIn...) {
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
func (k *Kernel) readFirmware(name string) ([]byte, error) {
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
