package zymbit

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"
)

// Closure limits.
const (
	maxClosure = 256
	maxELF     = 64 << 20
	maxLinks   = 4 * maxClosure // followed in all
)

// libraryDirs are where the dynamic linker of a Debian system looks for arm64, and where
// the vendor's packages put their libraries.
var libraryDirs = []string{
	"lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib", "usr/lib", "usr/local/lib",
	"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64",
}

// ErrMissing: a library that a program needs is not in the tree.
var ErrMissing = errors.New("not in the tree")

// File is one entry of a closure.
type File struct {
	Path string // without a leading slash
	Link string // target of a symbolic link, empty for a regular file
	Data []byte
}

// LinkFS is a tree that can tell links from files; os.DirFS and testing/fstest.MapFS are.
type LinkFS = fs.ReadLinkFS

// Closure returns what the programs need to run in an initramfs: themselves, their
// interpreter, and every library that they or other libraries name (DT_NEEDED), with the
// symbolic links on the way, sorted by path. tree is an unpacked root file system. All
// files must be for the machine of the first program.
func Closure(tree LinkFS, programs []string) ([]File, error) {
	c := closure{tree: tree, files: map[string]File{}}
	for _, p := range programs {
		if err := c.add(strings.TrimPrefix(path.Clean(p), "/")); err != nil {
			return nil, err
		}
	}
	for len(c.todo) > 0 {
		next := c.todo[0]
		c.todo = c.todo[1:]
		if err := c.library(next.name, next.by, next.runpath); err != nil {
			return nil, err
		}
	}
	out := make([]File, 0, len(c.files))
	for _, f := range c.files {
		out = append(out, f)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

type closure struct {
	tree    LinkFS
	machine elf.Machine
	files   map[string]File
	todo    []need
	seen    []string
	links   int
}

type need struct {
	name, by string
	runpath  []string
}

// add takes in the file at name and what it needs. Symbolic links are taken as they are
// and followed inside the tree.
func (c *closure) add(name string) error {
	name, err := c.dir(name)
	if err != nil {
		return err
	}
	if _, done := c.files[name]; done {
		return nil
	}
	st, err := c.tree.Lstat(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, ErrMissing)
	}
	if st.Mode().Type() != fs.ModeSymlink {
		return c.regular(name, st)
	}
	target, err := c.follow(name)
	if err != nil {
		return err
	}
	return c.add(target)
}

// follow takes in a symbolic link and returns where it leads.
func (c *closure) follow(name string) (string, error) {
	target, err := c.tree.ReadLink(name)
	if err != nil {
		return "", err
	}
	if c.links++; c.links > maxLinks || len(c.files) >= maxClosure {
		return "", fmt.Errorf("%s: too many links or files", name)
	}
	c.files[name] = File{Path: name, Link: target}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(name), target)
	}
	target = strings.TrimPrefix(path.Clean(target), "/")
	if !fs.ValidPath(target) {
		return "", fmt.Errorf("%s: the link leaves the tree", name)
	}
	return target, nil
}

// dir resolves links among the directories of name, as /lib → usr/lib, so that every file
// has one path; the links themselves are taken in too.
func (c *closure) dir(name string) (string, error) {
	parts := strings.Split(path.Dir(name), "/")
	at := ""
	for i, p := range parts {
		if p == "." || p == "" {
			continue
		}
		at = path.Join(at, p)
		st, err := c.tree.Lstat(at)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, ErrMissing)
		}
		if st.Mode().Type() != fs.ModeSymlink {
			continue
		}
		target, err := c.follow(at)
		if err != nil {
			return "", err
		}
		rest := append([]string{target}, parts[i+1:]...)
		return c.dir(path.Join(append(rest, path.Base(name))...))
	}
	return name, nil
}

func (c *closure) regular(name string, st fs.FileInfo) error {
	if _, done := c.files[name]; done {
		return nil
	}
	if !st.Mode().IsRegular() || st.Size() > maxELF {
		return fmt.Errorf("%s: not a file of sensible size", name)
	}
	b, err := fs.ReadFile(c.tree, name)
	if err != nil {
		return err
	}
	if len(c.files) >= maxClosure {
		return fmt.Errorf("more than %d files", maxClosure)
	}
	c.files[name] = File{Path: name, Data: b}
	deps, err := parseELF(b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if c.machine == elf.EM_NONE {
		c.machine = deps.machine
	}
	if deps.machine != c.machine {
		return fmt.Errorf("%s is for %v, the first program for %v", name, deps.machine, c.machine)
	}
	if deps.interpreter != "" {
		if err := c.add(strings.TrimPrefix(path.Clean(deps.interpreter), "/")); err != nil {
			return fmt.Errorf("interpreter of %s: %w", name, err)
		}
	}
	var dirs []string
	for _, d := range deps.runpath {
		d = strings.ReplaceAll(strings.ReplaceAll(d, "${ORIGIN}", "/"+path.Dir(name)), "$ORIGIN", "/"+path.Dir(name))
		dirs = append(dirs, strings.TrimPrefix(path.Clean(d), "/"))
	}
	for _, l := range deps.needed {
		c.todo = append(c.todo, need{l, name, dirs})
	}
	return nil
}

// library finds a needed library in the order of the dynamic linker.
func (c *closure) library(name, by string, runpath []string) error {
	if slices.Contains(c.seen, name) {
		return nil
	}
	if strings.Contains(name, "/") || name == "" {
		return fmt.Errorf("%s needs %q, which is no library's name", by, name)
	}
	for _, d := range append(slices.Clone(runpath), libraryDirs...) {
		p := path.Join(d, name)
		if !fs.ValidPath(p) {
			continue
		}
		if _, err := fs.Stat(c.tree, p); err != nil {
			continue
		}
		// A library of another machine may lie in a directory before the right one.
		if b, err := fs.ReadFile(c.tree, p); err == nil {
			if e, err := parseELF(b); err != nil || e.machine != c.machine {
				continue
			}
		}
		c.seen = append(c.seen, name)
		return c.add(p)
	}
	return fmt.Errorf("%s, which %s needs: %w", name, by, ErrMissing)
}

type elfDeps struct {
	machine     elf.Machine
	interpreter string
	needed      []string
	runpath     []string
}

// parseELF reads what a program or library wants of the dynamic linker.
func parseELF(b []byte) (d elfDeps, err error) {
	// debug/elf does not promise to take every file apart without a panic.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("no sensible ELF file: %v", r)
		}
	}()
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return d, err
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return d, fmt.Errorf("%v is neither a program nor a library", f.Type)
	}
	d.machine = f.Machine
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		if p.Filesz < 2 || p.Filesz > 4096 {
			return d, fmt.Errorf("an interpreter's name of %d bytes", p.Filesz)
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return d, err
		}
		d.interpreter = string(bytes.TrimRight(name, "\x00"))
	}
	if d.needed, err = f.ImportedLibraries(); err != nil {
		return d, err
	}
	if len(d.needed) > maxClosure {
		return d, fmt.Errorf("%d libraries are needed", len(d.needed))
	}
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := f.DynString(tag)
		if err != nil {
			return d, err
		}
		for _, p := range paths {
			d.runpath = append(d.runpath, strings.Split(p, ":")...)
		}
	}
	return d, nil
}
