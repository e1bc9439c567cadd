// Package uki puts a unified kernel image together: the systemd stub with the
// kernel, the initrd, the command line and the release data as further PE
// sections, natively and with the same bytes everywhere; it reads such images
// and computes their Authenticode digests. The image builders and the checks
// of images call it.
package uki

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Names of the sections that the stub knows and we use
// (systemd-stub(7); https://uapi-group.org/specifications/specs/unified_kernel_image/).
const (
	OSRelease = ".osrel"
	Cmdline   = ".cmdline"
	Uname     = ".uname"
	Linux     = ".linux"
	Initrd    = ".initrd"
)

// readable data: IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ.
const dataSection = 0x40000040

// Parts is what goes into a UKI beside the stub.
type Parts struct {
	OSRelease []byte // os-release(5) of the image
	Cmdline   string // printable ASCII, no NUL and no line feed at its end
	Uname     string // uname -r of the kernel
	Kernel    []byte // bzImage with an EFI stub
	Initrd    []byte // one or more cpio archives, compressed or not
}

// Build returns the UKI of these parts. Every part must be there.
func Build(stub []byte, p Parts) ([]byte, error) {
	if _, err := Parse(p.Kernel); err != nil {
		return nil, fmt.Errorf("uki: the kernel cannot be started by UEFI: %w", err)
	}
	for i := range len(p.Cmdline) {
		if c := p.Cmdline[i]; c < 0x20 || c > 0x7e {
			return nil, fmt.Errorf("uki: byte %d of the command line is not printable ASCII", i)
		}
	}
	return Append(stub, []Section{
		{OSRelease, p.OSRelease},
		{Cmdline, []byte(p.Cmdline)},
		{Uname, []byte(p.Uname)},
		{Linux, p.Kernel},
		{Initrd, p.Initrd},
	})
}

// Append returns stub with more sections behind its own, each loaded at the
// next page. It refuses a signed stub, whose signature would no longer hold,
// and one that has such a section already.
func Append(stub []byte, sections []Section) ([]byte, error) {
	f, err := Parse(stub)
	if err != nil {
		return nil, err
	}
	if err := f.appendable(sections); err != nil {
		return nil, fmt.Errorf("uki: %w", err)
	}
	le := binary.LittleEndian
	fileEnd, loadEnd := f.sizeOfHeaders, f.sizeOfHeaders
	for _, h := range f.sections {
		fileEnd = max(fileEnd, h.rawAt*min(h.rawSize, 1)+h.rawSize)
		loadEnd = max(loadEnd, h.virtualAddr+max(h.virtualSize, h.rawSize))
	}
	size := int64(align(fileEnd, f.fileAlign))
	for _, s := range sections {
		size += int64(align(uint32(len(s.Data)), f.fileAlign))
	}
	if size > 1<<30 {
		return nil, fmt.Errorf("uki: %d bytes are too many", size)
	}
	out := make([]byte, size)
	copy(out, stub[:fileEnd])
	fileEnd = align(fileEnd, f.fileAlign)
	initialized := le.Uint32(out[f.opt+optInitialized:])
	for i, s := range sections {
		n := uint32(len(s.Data))
		raw := align(n, f.fileAlign)
		loadEnd = align(loadEnd, f.sectionAlign)
		b := out[f.table+(len(f.sections)+i)*sectionHeader:][:sectionHeader]
		copy(b, s.Name)
		le.PutUint32(b[8:], n)
		le.PutUint32(b[12:], loadEnd)
		le.PutUint32(b[16:], raw)
		le.PutUint32(b[20:], fileEnd)
		le.PutUint32(b[36:], dataSection)
		copy(out[fileEnd:], s.Data)
		fileEnd += raw
		loadEnd += n
		initialized += raw
	}
	le.PutUint16(out[f.opt-coffSize+6:], uint16(len(f.sections)+len(sections)))
	le.PutUint32(out[f.opt+optInitialized:], initialized)
	le.PutUint32(out[f.opt+optSizeOfImage:], align(loadEnd, f.sectionAlign))
	le.PutUint32(out[f.opt+optCheckSum:], 0)
	// Whatever was appended must be readable by the parser that the checks use.
	if _, err := Parse(out); err != nil {
		return nil, err
	}
	return out, nil
}

func (f *File) appendable(sections []Section) error {
	if f.certSize != 0 {
		return errors.New("the stub is signed; take the unsigned one")
	}
	for _, a := range []uint32{f.fileAlign, f.sectionAlign} {
		if a < 512 || a > 1<<16 || a&(a-1) != 0 {
			return fmt.Errorf("the stub has alignment %d", a)
		}
	}
	if free := (int(f.sizeOfHeaders) - f.table) / sectionHeader; len(f.sections)+len(sections) > free {
		return fmt.Errorf("the stub's header has room for %d sections, %d are needed", free, len(f.sections)+len(sections))
	}
	seen := map[string]bool{}
	for _, h := range f.sections {
		seen[h.name] = true
	}
	for _, s := range sections {
		switch {
		case len(s.Name) < 2 || len(s.Name) > 8 || s.Name[0] != '.' || strings.ContainsRune(s.Name, 0):
			return fmt.Errorf("%q is not a section name", s.Name)
		case seen[s.Name]:
			return fmt.Errorf("section %s is there twice", s.Name)
		case len(s.Data) == 0:
			return fmt.Errorf("section %s is empty", s.Name)
		case len(s.Data) > 1<<30:
			return fmt.Errorf("section %s has %d bytes", s.Name, len(s.Data))
		}
		seen[s.Name] = true
	}
	return nil
}

// align rounds n up to a multiple of a, a power of two.
func align(n, a uint32) uint32 { return (n + a - 1) &^ (a - 1) }
