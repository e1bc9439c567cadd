package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"sort"
	"strings"

	"portcullis/images/cpio"
	"portcullis/images/deb"
)

// peerPackages are what Debian installs for an encrypted root, and what its tools
// call without saying so.
var peerPackages = []string{
	"base-files", "base-passwd", "bash", "busybox", "coreutils", "cryptsetup", "cryptsetup-bin", "cryptsetup-initramfs", "dash", "debianutils",
	"diffutils", "dpkg", "findutils", "gawk", "grep", "gzip", "initramfs-tools", "kmod", "libc-bin", "mount",
	"sed", "systemd-cryptsetup", "tar", "udev", "util-linux", "zstd",
	"libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64", "libtss2-tcti-device0t64",
}

var (
	kernelFile  = regexp.MustCompile(`^/boot/vmlinuz-(.+)$`)
	kernelOwner = regexp.MustCompile(`^linux-image-[0-9]`)
)

// Kernels of the two comparisons, as packages, with the driver of the chip.
const (
	guestKernel = "linux-image-cloud-arm64" // drives QEMU's machine and its TPM
	guestChip   = "tpm_tis"
	piKernel    = "linux-image-arm64" // of the Pi 4
	piChip      = "tpm_tis_spi"
)

// resolve asks for the packages and brings them here.
func resolve(ctx context.Context, store *deb.Store, kernel string) (*deb.Lock, error) {
	request := deb.Request{Suite: "trixie", Arch: "arm64", Components: []string{"main", "non-free-firmware"},
		Packages: append([]string{kernel}, peerPackages...)}
	lock, err := store.Resolve(ctx, request)
	if err != nil {
		return nil, err
	}
	return lock, store.Fetch(ctx, request, lock, nil)
}

// kernel reads the kernel's release and image.
func kernel(ctx context.Context, store *deb.Store, lock *deb.Lock) (release string, image []byte, err error) {
	for _, p := range lock.Packages {
		if !kernelOwner.MatchString(p.Name) {
			continue
		}
		err = deb.Walk(ctx, store.Path(p), func(h *tar.Header, r io.Reader) (err error) {
			if m := kernelFile.FindStringSubmatch(h.Name); m != nil {
				release = m[1]
				image, err = io.ReadAll(r)
			}
			return err
		})
		return release, image, err
	}
	return "", nil, fmt.Errorf("no kernel among the packages")
}

// writeTree writes the unpacked packages and the files in extra as an initramfs.
// No maintainer script runs; what such scripts would have made is in extra.
func writeTree(ctx context.Context, to string, store *deb.Store, lock *deb.Lock, extra map[string]file) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	t := tree{w: cpio.NewWriter(f, 0), seen: map[string]bool{}, links: map[string]string{}}
	// The first of a name stays: ours before a package's.
	names := make([]string, 0, len(extra))
	for n := range extra {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		h := &tar.Header{Name: "/" + n, Typeflag: tar.TypeReg, Mode: extra[n].mode}
		if extra[n].link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, extra[n].link
		}
		if err := t.add(h, strings.NewReader(extra[n].text)); err != nil {
			return err
		}
	}
	// The links /bin, /lib and /sbin come next: other packages write through them.
	packages := append([]deb.Package{}, lock.Packages...)
	sort.SliceStable(packages, func(i, j int) bool { return packages[i].Name == "base-files" && packages[j].Name != "base-files" })
	for _, p := range packages {
		err := deb.Walk(ctx, store.Path(p), func(h *tar.Header, r io.Reader) error { return t.add(h, r) })
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	if err := t.w.CharDevice("dev/console", 0o600, 5, 1); err != nil {
		return err
	}
	if err := t.w.Close(); err != nil {
		return err
	}
	return f.Close()
}

// file is a file that no package has.
type file struct {
	mode int64
	text string
	link string // a symlink to this instead
}

type tree struct {
	w     *cpio.Writer
	seen  map[string]bool
	links map[string]string // symlinks of directories at the root: bin → usr/bin
}

func (t *tree) add(h *tar.Header, r io.Reader) error {
	name := t.through(strings.Trim(path.Clean(h.Name), "/"))
	if name == "" || name == "." || t.seen[name] {
		return nil
	}
	if err := t.parents(path.Dir(name)); err != nil {
		return err
	}
	t.seen[name] = true
	switch h.Typeflag {
	case tar.TypeDir:
		return t.w.Dir(name, uint32(h.Mode)&0o7777)
	case tar.TypeSymlink:
		if !strings.Contains(name, "/") {
			t.links[name] = strings.Trim(h.Linkname, "/")
		}
		return t.w.Symlink(name, h.Linkname)
	case tar.TypeLink:
		return t.w.Symlink(name, "/"+strings.Trim(path.Clean(h.Linkname), "/"))
	case tar.TypeReg:
		var b bytes.Buffer
		if _, err := b.ReadFrom(r); err != nil {
			return err
		}
		return t.w.File(name, uint32(h.Mode)&0o777, b.Bytes())
	}
	return nil
}

// through follows /bin, /lib and /sbin into /usr.
func (t *tree) through(name string) string {
	first, rest, ok := strings.Cut(name, "/")
	if to := t.links[first]; ok && to != "" {
		return to + "/" + rest
	}
	return name
}

func (t *tree) parents(dir string) error {
	if dir == "." || t.seen[dir] {
		return nil
	}
	if err := t.parents(path.Dir(dir)); err != nil {
		return err
	}
	t.seen[dir] = true
	return t.w.Dir(dir, 0o755)
}
