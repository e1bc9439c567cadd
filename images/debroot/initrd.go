package debroot

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"portcullis/images/cpio"
	"portcullis/images/recipe"
)

// InitrdModules is the file of an initrd that lists its modules: absolute paths
// in load order, one a line.
const InitrdModules = "etc/portcullis/modules"

// LateModules is the file of an initrd that lists the modules to load from the
// mounted root, in the same form; there they are compressed.
const LateModules = "etc/portcullis/late-modules"

// lateModules returns that list: what the recipe names, with what it needs, but not
// what the initrd has loaded by then.
func (k *Kernel) lateModules(r *recipe.Recipe, loaded []string) ([]byte, error) {
	order, err := k.Modules.Order(r.Kernel.Late)
	if err != nil {
		return nil, err
	}
	var list bytes.Buffer
	for _, p := range order {
		if !slices.Contains(loaded, p) {
			fmt.Fprintf(&list, "/%s\n", path.Join("usr/lib/modules", k.Release, p))
		}
	}
	return list.Bytes(), nil
}

// InitrdFiles returns the modules of the recipe's initrd, uncompressed, their
// list, and the firmware that they ask for, by path.
func (k *Kernel) InitrdFiles(ctx context.Context, r *recipe.Recipe) (map[string][]byte, error) {
	order, err := k.Modules.Order(r.Kernel.Initrd)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	var list strings.Builder
	for _, p := range order {
		data, err := k.Modules.Load(p)
		if err != nil {
			return nil, err
		}
		name := path.Join("lib/modules", k.Release, strings.TrimSuffix(p, ".xz"))
		files[name] = data
		fmt.Fprintf(&list, "/%s\n", name)
	}
	files[InitrdModules] = []byte(list.String())
	if len(r.Kernel.Late) > 0 {
		if files[LateModules], err = k.lateModules(r, order); err != nil {
			return nil, err
		}
	}
	firmware, err := k.PickFirmware(ctx, r, order)
	if err != nil {
		return nil, err
	}
	for n, data := range firmware {
		files[path.Join("lib/firmware", n)] = data
	}
	return files, nil
}

// Extra is a file of an initrd that is more than plain data.
type Extra struct {
	Path string // without a leading slash
	Link string // target of a symbolic link, "" = a regular file
	Data []byte
	Mode uint32
}

// Pack writes an initrd: init as /init and the other files, in the order of
// names, directories first. epoch is the time of all entries, in seconds since 1970.
func Pack(init []byte, files map[string][]byte, epoch uint32, extra ...Extra) ([]byte, error) {
	all := make([]Extra, 0, len(files)+len(extra))
	for n, data := range files {
		all = append(all, Extra{Path: n, Data: data, Mode: 0o644})
	}
	all = append(all, extra...)
	sort.Slice(all, func(i, j int) bool { return all[i].Path < all[j].Path })
	dirs := map[string]bool{"dev": true, "proc": true, "sys": true, "run": true, "sysroot": true, "tmp": true}
	for _, e := range all {
		for d := path.Dir(e.Path); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	sortedDirs := make([]string, 0, len(dirs))
	for d := range dirs {
		sortedDirs = append(sortedDirs, d)
	}
	sort.Strings(sortedDirs)
	var out bytes.Buffer
	w := cpio.NewWriter(&out, epoch)
	for _, d := range sortedDirs {
		if err := w.Dir(d, 0o755); err != nil {
			return nil, err
		}
	}
	// The kernel opens it for PID 1 before anything could make it.
	if err := w.CharDevice("dev/console", 0o600, 5, 1); err != nil {
		return nil, err
	}
	if err := w.File("init", 0o755, init); err != nil {
		return nil, err
	}
	for _, e := range all {
		var err error
		if e.Link != "" {
			err = w.Symlink(e.Path, e.Link)
		} else {
			err = w.File(e.Path, e.Mode, e.Data)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
