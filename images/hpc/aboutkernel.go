package hpc

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/images/debroot"
	"portcullis/images/ktextmask"
	"portcullis/images/manifest"
	"portcullis/images/modlist"
	"portcullis/images/modtext"
)

// aboutKernel is what the agent and attestd know of a kernel beforehand.
type aboutKernel struct {
	Mask  manifest.KernelTextMask `json:"mask"`
	mask  []byte                  // the mask file
	allow []byte                  // which modules may be loaded
	syms  []byte                  // what the kernel exports to them
}

// aboutKernel computes the mask of the kernel's text, what it exports, and the list of
// modules: everything that initrd and root carry but the unlisted ones. All follow from
// the kernel package and the recipe's module lists alone, and are kept.
func (b *builder) aboutKernel(ctx context.Context, k *debroot.Kernel) (*aboutKernel, error) {
	initrd, err := k.Modules.Order(b.recipe.Kernel.Initrd)
	if err != nil {
		return nil, err
	}
	root, err := k.Modules.Choose(b.recipe.Kernel.Root)
	if err != nil {
		return nil, err
	}
	paths := slices.Concat(initrd, root)
	slices.Sort(paths)
	paths = slices.Compact(paths)
	paths = slices.DeleteFunc(paths, func(p string) bool {
		return slices.ContainsFunc(b.recipe.Kernel.Unlisted, func(u string) bool { return modlist.Name(u) == debroot.ModuleName(p) })
	})
	key := debroot.NewKey("about kernel", "ktextmask", "manifest", "modlist", "modtext").Add("kernel", filepath.Base(k.Dir)).Add("modules", strings.Join(paths, "\n"))
	done := b.Begin("kernel", "mask of its text, list of modules")
	dir, cached, err := b.Stage(ctx, "about", key, func(dir string) error { return describeKernel(k, paths, dir, b.Maker.Progress.Step) })
	if err != nil {
		return nil, err
	}
	out := new(aboutKernel)
	if out.mask, err = os.ReadFile(filepath.Join(dir, "mask")); err != nil {
		return nil, err
	}
	if out.allow, err = os.ReadFile(filepath.Join(dir, "allow")); err != nil {
		return nil, err
	}
	if out.syms, err = os.ReadFile(filepath.Join(dir, "exports")); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "about.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, out); err != nil {
		return nil, &Error{Reason: debroot.ReasonCacheBroken, Msg: "cached kernel description " + dir, Err: err}
	}
	done(cached)
	return out, nil
}

func describeKernel(k *debroot.Kernel, paths []string, dir string, step func(done, total int64)) error {
	image, err := os.ReadFile(k.Image())
	if err != nil {
		return err
	}
	m, err := ktextmask.Build(image)
	if err != nil {
		return fmt.Errorf("mask of kernel text: %w", err)
	}
	mask, err := m.Encode()
	if err != nil {
		return fmt.Errorf("mask of kernel text: %w", err)
	}
	syms, err := kernelExports(image)
	if err != nil {
		return err
	}
	sources := make([]modlist.Source, 0, len(paths))
	var done, total int64
	for _, p := range paths {
		if st, err := os.Stat(filepath.Join(k.ModuleTree(), p)); err == nil {
			total += st.Size()
		}
	}
	for _, p := range paths {
		ko, err := k.Modules.Load(p)
		if err != nil {
			return err
		}
		if _, err := modtext.Open(ko); err != nil { // attestd could not judge its text
			return fmt.Errorf("text of module %s: %w", p, err)
		}
		sources = append(sources, modlist.Source{Name: debroot.ModuleName(p), KO: ko})
		if st, err := os.Stat(filepath.Join(k.ModuleTree(), p)); err == nil {
			done += st.Size()
		}
		step(done, total)
	}
	allow, err := modlist.Build(sources)
	if err != nil {
		return fmt.Errorf("list of kernel modules: %w", err)
	}
	text, err := json.Marshal(aboutKernel{Mask: m.Summary(mask)})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"mask": mask, "allow": allow, "exports": syms, "about.json": text} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func kernelExports(image []byte) ([]byte, error) {
	vmlinux, err := ktextmask.Vmlinux(image)
	if err != nil {
		return nil, fmt.Errorf("exports of the kernel: %w", err)
	}
	return modtext.BuildExports(vmlinux)
}
