package debroot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/ulikunitz/xz"

	"portcullis/images/deb"
	"portcullis/images/recipe"
)

// Modules is the index of a kernel's module tree, as depmod wrote it.
type Modules struct {
	dir  string              // .../lib/modules/<release>
	deps map[string][]string // path below dir → paths it needs, nearest first
	name map[string]string   // module name with underscores → path
	soft map[string][]string // module name → names to load before
}

// ModuleName turns a path into the kernel's name of the module.
func ModuleName(p string) string {
	base := path.Base(p)
	base, _, _ = strings.Cut(base, ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

// ReadModules reads modules.dep and modules.softdep.
func ReadModules(dir string) (*Modules, error) {
	m := &Modules{dir: dir, deps: map[string][]string{}, name: map[string]string{}, soft: map[string][]string{}}
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("index of kernel modules: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		p, rest, ok := strings.Cut(s.Text(), ":")
		if !ok {
			continue
		}
		m.deps[p] = strings.Fields(rest)
		m.name[ModuleName(p)] = p
	}
	b, err = os.ReadFile(filepath.Join(dir, "modules.softdep"))
	if err != nil {
		return nil, fmt.Errorf("index of kernel modules: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 3 || f[0] != "softdep" {
			continue
		}
		pre := false
		for _, w := range f[2:] {
			switch {
			case w == "pre:":
				pre = true
			case w == "post:":
				pre = false
			case pre:
				m.soft[strings.ReplaceAll(f[1], "-", "_")] = append(m.soft[strings.ReplaceAll(f[1], "-", "_")], strings.ReplaceAll(w, "-", "_"))
			}
		}
	}
	return m, nil
}

// Order returns the paths to load for names, each after what it needs.
func (m *Modules) Order(names []string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	var visit func(p string)
	visit = func(p string) {
		if seen[p] {
			return
		}
		seen[p] = true
		for _, s := range m.soft[ModuleName(p)] {
			if sp, ok := m.name[s]; ok {
				visit(sp)
			}
		}
		deps := m.deps[p]
		for i := len(deps) - 1; i >= 0; i-- { // depmod lists the nearest first
			visit(deps[i])
		}
		out = append(out, p)
	}
	builtin, err := m.builtin()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		n = strings.ReplaceAll(n, "-", "_")
		p, ok := m.name[n]
		switch {
		case ok:
			visit(p)
		case builtin[n]: // part of this kernel: nothing to load
		default:
			return nil, Refuse(ReasonMissing, "kernel module %q is not in the kernel package", n)
		}
	}
	return out, nil
}

func (m *Modules) builtin() (map[string]bool, error) {
	b, err := os.ReadFile(filepath.Join(m.dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("index of kernel modules: %w", err)
	}
	out := map[string]bool{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		out[ModuleName(s.Text())] = true
	}
	return out, nil
}

// Choose returns the paths that the wanted names and globs select, with what
// they need, sorted. A glob that selects nothing is an error: it is a misprint.
func (m *Modules) Choose(wanted []string) ([]string, error) {
	var names []string
	for _, w := range wanted {
		if !strings.Contains(w, "/") {
			names = append(names, w)
			continue
		}
		found := false
		for p := range m.deps {
			if recipe.MatchPath("/"+w, "/"+p) {
				names, found = append(names, ModuleName(p)), true
			}
		}
		if !found {
			return nil, Refuse(ReasonMissing, "no kernel module matches %q", w)
		}
	}
	paths, err := m.Order(names)
	sort.Strings(paths)
	return paths, err
}

// Load returns the module's file without compression, its signature kept.
func (m *Modules) Load(p string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(m.dir, p))
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(p, ".xz") {
		return b, nil
	}
	r, err := xz.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return out, nil
}

// Firmware returns the firmware files that the modules name, sorted.
func (m *Modules) Firmware(ctx context.Context, paths []string) ([]string, error) {
	tool, err := deb.NeedTool("modinfo", "kmod")
	if err != nil {
		return nil, err
	}
	set := map[string]bool{}
	for len(paths) > 0 {
		n := min(200, len(paths))
		args := []string{"-F", "firmware"}
		for _, p := range paths[:n] {
			args = append(args, filepath.Join(m.dir, p))
		}
		out, err := exec.CommandContext(ctx, tool, args...).Output()
		if err != nil {
			return nil, fmt.Errorf("modinfo: %w", err)
		}
		for _, f := range strings.Fields(string(out)) {
			set[f] = true
		}
		paths = paths[n:]
	}
	out := make([]string, 0, len(set))
	for f := range set {
		out = append(out, f)
	}
	sort.Strings(out)
	return out, nil
}

// depmod writes the index of the module tree below base for a kernel release.
func depmod(ctx context.Context, base, release string) error {
	tool, err := deb.NeedTool("depmod", "kmod")
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, tool, "-b", base, release).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// indexFiles are what depmod writes, sorted; modprobe reads the binary ones.
func indexFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.Type()&fs.ModeType == 0 && strings.HasPrefix(e.Name(), "modules.") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}
