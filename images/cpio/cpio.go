// Package cpio writes archives of the format that the Linux kernel unpacks as
// its initramfs ("newc", Documentation/driver-api/early-userspace/buffer-format.rst),
// with the same bytes for the same entries everywhere. The image builders call it.
package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// File types of an entry, as in st_mode (inode(7)).
const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

// MaxFile is the largest size of an entry in bytes; the format has 32 bits.
const MaxFile = 1<<32 - 1

// pathMax is PATH_MAX of the kernel, which refuses longer names.
const pathMax = 4096

const trailer = "TRAILER!!!"

// Writer writes one archive. Entries keep the order in which they are added,
// directories before what is in them; owner and group are root, every time is
// the one given to NewWriter, inodes are numbered from 1. The first error
// stays: later calls return it.
type Writer struct {
	w     io.Writer
	mtime uint32
	n     int64 // bytes written
	inode uint32
	seen  map[string]uint32 // name → type
	err   error
}

// NewWriter returns a writer of an archive to w; mtime is in seconds since 1970.
func NewWriter(w io.Writer, mtime uint32) *Writer {
	return &Writer{w: w, mtime: mtime, seen: map[string]uint32{}}
}

// Dir adds a directory with the permission bits perm (0 to 07777).
func (w *Writer) Dir(name string, perm uint32) error {
	return w.add(entry{name: name, kind: typeDir, perm: perm, links: 2})
}

// File adds a regular file.
func (w *Writer) File(name string, perm uint32, content []byte) error {
	return w.add(entry{name: name, kind: typeFile, perm: perm, links: 1, content: content})
}

// Symlink adds a symbolic link to target.
func (w *Writer) Symlink(name, target string) error {
	if target == "" || len(target) >= pathMax || strings.ContainsRune(target, 0) {
		return w.fail(fmt.Errorf("cpio: symlink %q: target %q cannot be written", name, target))
	}
	return w.add(entry{name: name, kind: typeSymlink, perm: 0o777, links: 1, content: []byte(target)})
}

// CharDevice adds a character device. The kernel needs /dev/console (5, 1) in
// the initramfs to give PID 1 its standard streams.
func (w *Writer) CharDevice(name string, perm, major, minor uint32) error {
	return w.add(entry{name: name, kind: typeChar, perm: perm, links: 1, major: major, minor: minor})
}

// Close writes the end of the archive, padded to 4 bytes: the kernel accepts a
// second archive, compressed or not, right behind it.
func (w *Writer) Close() error {
	w.write(entry{name: trailer, links: 1}, 0)
	err := w.err
	if err == nil {
		w.err = errors.New("cpio: the archive is closed")
	}
	return err
}

type entry struct {
	name         string
	kind         uint32
	perm         uint32
	links        uint32
	major, minor uint32
	content      []byte
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}

func (w *Writer) add(e entry) error {
	if w.err != nil {
		return w.err
	}
	if err := w.check(e); err != nil {
		return w.fail(fmt.Errorf("cpio: %q: %w", e.name, err))
	}
	w.seen[e.name] = e.kind
	w.inode++
	w.write(e, w.inode)
	return w.err
}

// check refuses what the kernel would unpack differently or not at all.
func (w *Writer) check(e entry) error {
	switch {
	case e.name == "" || e.name == trailer || len(e.name) >= pathMax || strings.ContainsRune(e.name, 0):
		return errors.New("not a name of an entry")
	case e.perm > 0o7777:
		return fmt.Errorf("permission bits %o", e.perm)
	case len(e.content) > MaxFile:
		return fmt.Errorf("%d bytes are too many", len(e.content))
	}
	parts := strings.Split(e.name, "/")
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return errors.New("names are relative and clean")
		}
	}
	if _, twice := w.seen[e.name]; twice {
		return errors.New("is there already")
	}
	// The kernel makes no parents: an entry without its directory is lost silently.
	for i := 1; i < len(parts); i++ {
		if parent := strings.Join(parts[:i], "/"); w.seen[parent] != typeDir {
			return fmt.Errorf("directory %q has not been added before", parent)
		}
	}
	return nil
}

func (w *Writer) write(e entry, inode uint32) {
	mtime := w.mtime
	if inode == 0 {
		mtime = 0
	}
	var b bytes.Buffer
	b.WriteString("070701")
	for _, field := range []uint32{
		inode, e.kind | e.perm, 0, 0, e.links, mtime, uint32(len(e.content)),
		0, 0, e.major, e.minor, uint32(len(e.name) + 1), 0,
	} {
		fmt.Fprintf(&b, "%08x", field)
	}
	b.WriteString(e.name)
	b.WriteByte(0)
	w.raw(b.Bytes())
	w.pad()
	w.raw(e.content)
	w.pad()
}

func (w *Writer) raw(b []byte) {
	if w.err != nil {
		return
	}
	n, err := w.w.Write(b)
	w.n += int64(n)
	if err != nil {
		w.err = fmt.Errorf("cpio: write: %w", err)
	}
}

// pad fills up to 4 bytes, counted from the start of the archive.
func (w *Writer) pad() {
	if rest := w.n % 4; rest != 0 {
		w.raw(make([]byte, 4-rest))
	}
}
