package pi

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"portcullis/hardware/zymbit"
	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/images/squash"
)

// zymbitTools are the vendor's programs that pi-init runs.
var zymbitTools = []string{"sbin/zkunlockifs", "sbin/zklockifs", "sbin/zkgrifs"}

// zymbitPackages returns the vendor's package files in the order of their names,
// and a digest of all of them.
func (b *builder) zymbitPackages() (files []string, digest string, err error) {
	if b.o.ZymbitDebs == "" {
		return nil, "", nil
	}
	if files, err = filepath.Glob(filepath.Join(b.o.ZymbitDebs, "*.deb")); err != nil {
		return nil, "", err
	}
	if len(files) == 0 {
		return nil, "", refuse(debroot.ReasonMissing, "there is no package in %s", b.o.ZymbitDebs)
	}
	sort.Strings(files)
	var all strings.Builder
	for _, f := range files {
		d, err := debroot.DigestFile(f)
		if err != nil {
			return nil, "", err
		}
		all.WriteString(d + "\n")
	}
	return files, all.String(), nil
}

// zymbitFiles returns what the vendor's tools need to run in the initramfs:
// themselves, the dynamic linker and every library that they or other libraries name.
func (b *builder) zymbitFiles(ctx context.Context) ([]debroot.Extra, error) {
	packages, _, err := b.zymbitPackages()
	if err != nil || packages == nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.m.CacheDir, ".zymbit-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	root, err := os.OpenRoot(dir) // a package cannot write outside, whatever links it brings
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := b.unpackLibraries(ctx, root); err != nil {
		return nil, err
	}
	for _, p := range packages {
		if err := unpackPackage(ctx, root, p); err != nil {
			return nil, err
		}
	}
	tree := os.DirFS(dir).(zymbit.LinkFS)
	closure, err := zymbit.Closure(tree, zymbitTools)
	if err == nil && b.zymbitd() {
		// It runs in the system, not here; what it lacks is better known now than there.
		_, err = zymbit.Closure(tree, []string{b.vendor.library})
	}
	if err != nil {
		return nil, &Error{Reason: debroot.ReasonMissing, Msg: "the vendor's packages in " + b.o.ZymbitDebs, Err: err}
	}
	out := make([]debroot.Extra, 0, len(closure))
	for _, f := range closure {
		out = append(out, debroot.Extra{Path: f.Path, Link: f.Link, Data: f.Data, Mode: 0o755})
	}
	return out, nil
}

// unpackLibraries writes the image's own libraries, and the links that lead to them.
func (b *builder) unpackLibraries(ctx context.Context, root *os.Root) error {
	tree, contents, err := b.m.Base(ctx, b.packages, b.recipe)
	if err != nil {
		return err
	}
	defer contents.Close()
	for _, p := range tree.Paths() {
		n := tree.Get(p)
		top := path.Dir(p) == "/" && n.Kind == squash.Symlink // /lib, /sbin of the merged /usr
		if !top && path.Dir(p) != "/usr/lib" && path.Dir(p) != "/usr/lib/aarch64-linux-gnu" {
			continue
		}
		switch n.Kind {
		case squash.Symlink:
			if err = putLink(root, p, n.Target); err == nil && top {
				err = root.MkdirAll(n.Target, 0o755)
			}
		case squash.File:
			err = putFile(root, p, n.Content.Open())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func unpackPackage(ctx context.Context, root *os.Root, file string) error {
	return deb.Walk(ctx, file, func(h *tar.Header, r io.Reader) error {
		switch h.Typeflag {
		case tar.TypeReg:
			return putFile(root, h.Name, r)
		case tar.TypeSymlink:
			return putLink(root, h.Name, h.Linkname)
		case tar.TypeLink:
			return refuse(debroot.ReasonOptions, "%s has a hard link, %s", filepath.Base(file), h.Name)
		}
		return nil
	})
}

func putLink(root *os.Root, name, target string) error {
	name = strings.TrimPrefix(name, "/")
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := root.Symlink(target, name); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func putFile(root *os.Root, name string, r io.Reader) error {
	name = strings.TrimPrefix(name, "/")
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f, err := root.Create(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", name, err)
	}
	return f.Close()
}
