package hpc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"

	"portcullis/images/cpio"
)

// Files of the initrd beside /init.
const (
	initrdTrust   = "etc/portcullis/trust.json"
	initrdModules = "etc/portcullis/modules" // absolute paths in load order, one a line
)

// initrd returns the compressed archive: hpc-init, the modules it loads with
// the firmware that they ask for, whom it trusts.
func (b *builder) initrd(ctx context.Context, k *kernel, trust []byte, epoch int64) ([]byte, error) {
	order, err := k.modules.order(b.recipe.Kernel.Initrd)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{initrdTrust: trust}
	var list strings.Builder
	for _, p := range order {
		data, err := k.modules.load(p)
		if err != nil {
			return nil, err
		}
		name := path.Join("lib/modules", k.release, strings.TrimSuffix(p, ".xz"))
		files[name] = data
		fmt.Fprintf(&list, "/%s\n", name)
	}
	files[initrdModules] = []byte(list.String())
	firmware, err := k.pickFirmware(ctx, b.recipe, order)
	if err != nil {
		return nil, err
	}
	for n, data := range firmware {
		files[path.Join("lib/firmware", n)] = data
	}
	program, err := os.ReadFile(b.Binaries.Init)
	if err != nil {
		return nil, err
	}
	archive, err := pack(program, files, uint32(epoch))
	if err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	return cpio.Zstd(archive), nil
}

// pack writes the archive in the order of names, directories first.
func pack(init []byte, files map[string][]byte, epoch uint32) ([]byte, error) {
	dirs := map[string]bool{"dev": true, "proc": true, "sys": true, "run": true, "sysroot": true, "tmp": true}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	sort.Strings(names)
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
	for _, n := range names {
		if err := w.File(n, 0o644, files[n]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
