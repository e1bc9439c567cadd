package debroot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/images/deb"
	"portcullis/images/recipe"
)

// OwnKernel is a kernel that was built instead of taken out of a package. It has no
// modules: all is in it.
type OwnKernel struct {
	Dir      string        // vmlinuz, release, modules.builtin, modules.builtin.modinfo
	Packages []deb.Package // that it was made of
}

// UseKernel puts an own kernel in the place of the recipe's: p then names what it was
// made of, and the result r no module by a path, for there are none to choose. Modules
// by name stay, but for unlisted ones: that each is part of the kernel is checked like
// for any other.
func (m *Maker) UseKernel(ctx context.Context, own OwnKernel, p *Packages, r *recipe.Recipe) (*Kernel, *recipe.Recipe, error) {
	p.Kernel = own.Packages
	with := *r
	with.Kernel.Root = nil
	for _, w := range r.Kernel.Root {
		if !strings.Contains(w, "/") && !slices.Contains(r.Kernel.Unlisted, w) {
			with.Kernel.Root = append(with.Kernel.Root, w)
		}
	}
	k := NewKey("own kernel", "deb").Add("kernel", filepath.Base(own.Dir)).Add("stub", p.Stub.SHA256)
	for _, d := range p.Firmware {
		k.Add("package", d.SHA256)
	}
	dir, _, err := m.Stage(ctx, "kernel", k, func(dir string) error {
		if err := m.Fetch(ctx, p); err != nil {
			return err
		}
		done := m.Begin("kernel", "its own build")
		defer done(false)
		return m.unpackOwn(ctx, own, p, &with, dir)
	})
	if err != nil {
		return nil, nil, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, nil, err
	}
	out := &Kernel{Dir: dir, Release: string(release)}
	if out.Modules, err = ReadModules(out.ModuleTree()); err != nil {
		return nil, nil, err
	}
	if out.builtIn, err = builtInFirmware(filepath.Join(out.ModuleTree(), "modules.builtin.modinfo")); err != nil {
		return nil, nil, err
	}
	return out, &with, nil
}

func (m *Maker) unpackOwn(ctx context.Context, own OwnKernel, p *Packages, r *recipe.Recipe, dir string) error {
	release, err := os.ReadFile(filepath.Join(own.Dir, "release"))
	if err != nil {
		return err
	}
	u := &unpacker{ctx: ctx, store: m.Store, packages: p, recipe: r, dir: dir, release: strings.TrimSpace(string(release))}
	tree := filepath.Join(dir, "lib", "modules", u.release)
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	for to, from := range map[string]string{filepath.Join(dir, "vmlinuz"): "vmlinuz",
		filepath.Join(tree, "modules.builtin"): "modules.builtin", filepath.Join(tree, "modules.builtin.modinfo"): "modules.builtin.modinfo"} {
		if err := CopyFile(to, filepath.Join(own.Dir, from), 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "modules.order"), nil, 0o644); err != nil {
		return err
	}
	return u.rest()
}

// builtInFirmware reads which firmware the drivers inside of a kernel ask for, from
// modules.builtin.modinfo: entries "driver.firmware=name", each ended by a zero.
func builtInFirmware(file string) (names []string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("firmware of the kernel's drivers: %w", err)
	}
	for entry := range bytes.SplitSeq(b, []byte{0}) {
		key, value, ok := strings.Cut(string(entry), "=")
		if ok && strings.HasSuffix(key, ".firmware") && value != "" {
			names = append(names, value)
		}
	}
	return names, nil
}
