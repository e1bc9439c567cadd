package debroot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"

	"portcullis/images/recipe"
	"portcullis/images/squash"
)

// Populate turns the unpacked packages into the root that the recipe describes,
// up to the units, which Finish links: what the caller adds of its own comes
// between. Files that the caller put there before, sysusers.d among them, count
// as those of a package. scratch is a directory for the index of modules.
func Populate(ctx context.Context, t *squash.Tree, r *recipe.Recipe, k *Kernel, scratch string) error {
	for _, d := range r.Dirs {
		if err := t.Mkdir(d.Path, d.Mode); err != nil {
			return fmt.Errorf("%s: %w", d.At, err)
		}
	}
	if err := WriteUsers(t, r); err != nil {
		return err
	}
	for _, j := range r.Join {
		if err := join(t, j); err != nil {
			return fmt.Errorf("%s: %w", j.At, err)
		}
	}
	for _, f := range r.Files {
		if err := t.WriteFile(f.Path, f.Mode, f.Content); err != nil {
			return fmt.Errorf("%s: %w", f.At, err)
		}
	}
	for _, l := range r.Links {
		if err := t.Link(l.Path, l.Target); err != nil {
			return fmt.Errorf("%s: %w", l.At, err)
		}
	}
	return rootModules(ctx, k, r, t, scratch)
}

// Finish enables and masks the recipe's units, takes rights off programs and
// refuses a tree that is not safe; lab allows the lab's command channel.
func Finish(t *squash.Tree, r *recipe.Recipe, lab bool) error {
	for _, u := range r.Enable {
		if err := Enable(t, u); err != nil {
			return err
		}
	}
	for _, u := range r.Mask {
		if err := Mask(t, u); err != nil {
			return err
		}
	}
	// Files are as the packages left them: no service has to bring /etc up to date.
	if err := t.WriteFile("/etc/.updated", 0o644, nil); err != nil {
		return err
	}
	dropSetID(t)
	return Guard(t, lab)
}

// dropSetID takes the setuid and setgid bits off every program: nobody but root
// runs one of them here, and containers bring their own.
func dropSetID(t *squash.Tree) {
	for _, p := range t.Paths() {
		if n := t.Get(p); n != nil && n.Kind == squash.File {
			n.Mode &^= 0o6000
		}
	}
}

// rootModules puts the chosen kernel modules, their index and firmware in place.
func rootModules(ctx context.Context, k *Kernel, r *recipe.Recipe, t *squash.Tree, scratch string) error {
	paths, err := k.Modules.Choose(slices.Concat(r.Kernel.Root, r.Kernel.Late))
	if err != nil {
		return err
	}
	// The index is made over exactly what is shipped.
	base := filepath.Join(scratch, "modules")
	defer os.RemoveAll(base)
	dir := filepath.Join(base, "lib", "modules", k.Release)
	for _, p := range append([]string{"modules.builtin", "modules.builtin.modinfo", "modules.order"}, paths...) {
		to := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Link(filepath.Join(k.ModuleTree(), p), to); err != nil {
			return err
		}
	}
	if err := depmod(ctx, base, k.Release); err != nil {
		return err
	}
	index, err := indexFiles(dir)
	if err != nil {
		return err
	}
	for _, p := range append(index, paths...) {
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return err
		}
		if err := t.WriteFile(path.Join("/usr/lib/modules", k.Release, p), 0o644, data); err != nil {
			return err
		}
	}
	files, err := k.PickFirmware(ctx, r, paths)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if err := t.WriteFile(path.Join("/usr/lib/firmware", n), 0o644, files[n]); err != nil {
			return err
		}
	}
	return nil
}

// join writes the files that match one after the other, each ending in a line feed.
func join(t *squash.Tree, j recipe.Join) error {
	var out bytes.Buffer
	for _, p := range t.Paths() {
		if !recipe.MatchPath(j.From, p) {
			continue
		}
		b, err := t.Read(p)
		if err != nil {
			return err
		}
		out.Write(b)
		if !bytes.HasSuffix(b, []byte("\n")) {
			out.WriteByte('\n')
		}
	}
	if out.Len() == 0 {
		return Refuse(ReasonMissing, "no file matches %q", j.From)
	}
	return t.WriteFile(j.Path, 0o644, out.Bytes())
}
