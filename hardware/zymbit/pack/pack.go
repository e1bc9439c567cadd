// Package pack takes the vendor's tools for a Zymbit module out of the vendor's packages,
// with every library they need, for the initramfs of an image that is built with
// --zymbit-debs. The packages may not be passed on, so they are never part of the
// project; the operator brings them. The image builder calls it.
package pack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"portcullis/hardware/zymbit"
	"portcullis/images/deb"
)

// Tools are the programs that pi-init runs, by their path in the initramfs.
var Tools = []string{"sbin/zkunlockifs", "sbin/zklockifs", "sbin/zkgrifs"}

// Limits.
const (
	maxFile  = 32 << 20
	maxTotal = 64 << 20
)

// ErrNoTool: the vendor's packages do not hold a tool.
var ErrNoTool = errors.New("not in the vendor's packages")

// Files returns what goes into the initramfs, by path. vendor is the directory with the
// vendor's packages; base are the files of Debian packages of the same image, of which
// those with libraries are searched. scratch is an empty directory.
func Files(ctx context.Context, vendor string, base []string, scratch string) (map[string][]byte, error) {
	debs, err := filepath.Glob(filepath.Join(vendor, "*.deb"))
	if err != nil {
		return nil, err
	}
	if len(debs) == 0 {
		return nil, fmt.Errorf("no package is in %s", vendor)
	}
	sort.Strings(debs)
	root, err := os.OpenRoot(scratch)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// As Debian's own tree: packages that still say /lib or /sbin meet the others.
	for _, d := range []string{"lib", "sbin", "bin"} {
		if err := root.MkdirAll("usr/"+d, 0o755); err != nil {
			return nil, err
		}
		if err := root.Symlink("usr/"+d, d); err != nil {
			return nil, err
		}
	}
	x := &extractor{root: root}
	for _, d := range append(debs, base...) {
		if err := deb.Walk(ctx, d, x.entry); err != nil {
			return nil, err
		}
	}
	for _, t := range Tools {
		if err := x.place(t); err != nil {
			return nil, err
		}
	}
	tree, ok := root.FS().(zymbit.LinkFS)
	if !ok {
		return nil, errors.New("this Go cannot read links of a root")
	}
	files, err := zymbit.Bundle(tree, Tools)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, b := range files {
		total += len(b)
	}
	if total > maxTotal {
		return nil, fmt.Errorf("the vendor's tools and their libraries have %d MiB, more than %d", total>>20, maxTotal>>20)
	}
	return files, nil
}

type extractor struct{ root *os.Root }

// entry keeps the vendor's programs and everybody's libraries; nothing else of a package
// can matter to a program that is started by pi-init.
func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	name := strings.TrimPrefix(h.Name, "/")
	base := path.Base(name)
	if !strings.HasPrefix(base, "zk") && !strings.Contains(base, ".so") || h.Size > maxFile {
		return nil
	}
	for _, d := range []string{"lib/", "sbin/", "bin/"} {
		if strings.HasPrefix(name, d) {
			name = "usr/" + name
		}
	}
	if err := x.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		if path.IsAbs(h.Linkname) {
			rel, err := filepath.Rel("/"+path.Dir(name), h.Linkname)
			if err != nil {
				return err
			}
			h.Linkname = rel
		}
		err := x.root.Symlink(h.Linkname, name)
		if errors.Is(err, fs.ErrExist) {
			return nil // the vendor's come first
		}
		return err
	case tar.TypeReg:
		f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = io.Copy(f, io.LimitReader(r, maxFile))
		return errors.Join(err, f.Close())
	}
	return nil
}

// place makes a tool reachable as /sbin/NAME where the vendor has it in another directory.
func (x *extractor) place(tool string) error {
	name := path.Base(tool)
	for _, d := range []string{"usr/sbin", "usr/bin", "usr/local/sbin", "usr/local/bin"} {
		if _, err := x.root.Stat(path.Join(d, name)); err != nil {
			continue
		}
		if d == "usr/sbin" {
			return nil
		}
		return x.root.Symlink(path.Join("..", strings.TrimPrefix(d, "usr/"), name), path.Join("usr/sbin", name))
	}
	return fmt.Errorf("%s: %w", name, ErrNoTool)
}
