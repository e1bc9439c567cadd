package uki

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Offsets and sizes of the PE/COFF format (Microsoft "PE Format": COFF file
// header, optional header PE32+, section table), in bytes.
const (
	dosHeaderSize  = 64
	lfanewAt       = 60 // in the DOS header: where the PE signature is
	coffSize       = 24 // signature and COFF header
	optMagic       = 0x20b
	optInitialized = 8  // from the optional header: SizeOfInitializedData
	optSectionAlgn = 32 // SectionAlignment
	optFileAlgn    = 36 // FileAlignment
	optSizeOfImage = 56
	optHeaders     = 60 // SizeOfHeaders
	optCheckSum    = 64
	optDirectories = 108 // NumberOfRvaAndSizes
	optSecurity    = 144 // directory 4, the certificate table
	optMinimum     = 152
	sectionHeader  = 40
	maxSections    = 96 // the Windows loader's own limit
)

// Section is a PE section with its content as it stands in the file.
type Section struct {
	Name string
	Data []byte
}

// header is a section header of the file.
type header struct {
	name        string
	virtualSize uint32
	virtualAddr uint32
	rawSize     uint32
	rawAt       uint32
}

// File is a parsed PE32+ image. It keeps the bytes it was parsed from.
type File struct {
	data     []byte
	opt      int // where the optional header begins
	table    int // where the section table begins
	sections []header
	// From the optional header.
	sectionAlign, fileAlign, sizeOfHeaders uint32
	certAt, certSize                       uint32
}

// ErrNotPE is wrapped by every error of Parse.
var ErrNotPE = errors.New("not a usable PE32+ image")

func notPE(format string, args ...any) error {
	return fmt.Errorf("uki: %w: %s", ErrNotPE, fmt.Sprintf(format, args...))
}

// Parse reads the headers of a PE32+ image and checks that everything they
// name lies inside data and that no two sections overlap.
func Parse(data []byte) (*File, error) {
	le := binary.LittleEndian
	if len(data) < dosHeaderSize || string(data[:2]) != "MZ" {
		return nil, notPE("no DOS header")
	}
	if int64(len(data)) > 1<<31 {
		return nil, notPE("%d bytes are too many", len(data))
	}
	pe := int64(le.Uint32(data[lfanewAt:]))
	if pe < 4 || pe+coffSize+optMinimum > int64(len(data)) || string(data[pe:pe+4]) != "PE\x00\x00" {
		return nil, notPE("no PE header at byte %d", pe)
	}
	f := &File{data: data, opt: int(pe) + coffSize}
	optSize := int(le.Uint16(data[pe+20:]))
	count := int(le.Uint16(data[pe+6:]))
	f.table = f.opt + optSize
	switch {
	case optSize < optMinimum || f.table+count*sectionHeader > len(data):
		return nil, notPE("the optional header or the section table is cut off")
	case count > maxSections:
		return nil, notPE("%d sections", count)
	case le.Uint16(data[f.opt:]) != optMagic:
		return nil, notPE("optional header of type %#x", le.Uint16(data[f.opt:]))
	case le.Uint32(data[f.opt+optDirectories:]) < 5:
		return nil, notPE("no certificate directory")
	}
	f.sectionAlign = le.Uint32(data[f.opt+optSectionAlgn:])
	f.fileAlign = le.Uint32(data[f.opt+optFileAlgn:])
	f.sizeOfHeaders = le.Uint32(data[f.opt+optHeaders:])
	f.certAt = le.Uint32(data[f.opt+optSecurity:])
	f.certSize = le.Uint32(data[f.opt+optSecurity+4:])
	if int64(f.sizeOfHeaders) < int64(f.table+count*sectionHeader) || int64(f.sizeOfHeaders) > int64(len(data)) {
		return nil, notPE("the headers are said to be %d bytes long", f.sizeOfHeaders)
	}
	// Signatures stand at the very end; anything else would be hashed differently by different firmware.
	if f.certSize != 0 && int64(f.certAt)+int64(f.certSize) != int64(len(data)) {
		return nil, notPE("the certificate table is not at the end")
	}
	return f, f.readSections(count)
}

func (f *File) readSections(count int) error {
	le := binary.LittleEndian
	end := int64(len(f.data)) - int64(f.certSize)
	for i := range count {
		b := f.data[f.table+i*sectionHeader:]
		h := header{
			name:        strings.TrimRight(string(b[:8]), "\x00"),
			virtualSize: le.Uint32(b[8:]),
			virtualAddr: le.Uint32(b[12:]),
			rawSize:     le.Uint32(b[16:]),
			rawAt:       le.Uint32(b[20:]),
		}
		if h.rawSize > 0 {
			if int64(h.rawAt) < int64(f.sizeOfHeaders) || int64(h.rawAt)+int64(h.rawSize) > end {
				return notPE("section %q lies outside the file", h.name)
			}
			for _, o := range f.sections {
				if o.rawSize > 0 && h.rawAt < o.rawAt+o.rawSize && o.rawAt < h.rawAt+h.rawSize {
					return notPE("sections %q and %q overlap", o.name, h.name)
				}
			}
		}
		if int64(h.virtualAddr)+int64(max(h.virtualSize, h.rawSize)) > 1<<31 {
			return notPE("section %q is loaded at %#x", h.name, h.virtualAddr)
		}
		f.sections = append(f.sections, h)
	}
	return nil
}

// Sections returns all sections in the order of the section table, each with
// min(VirtualSize, SizeOfRawData) bytes: what is loaded without the padding.
func (f *File) Sections() []Section {
	var out []Section
	for _, h := range f.sections {
		n := min(h.rawSize, h.virtualSize)
		out = append(out, Section{Name: h.name, Data: f.data[h.rawAt*min(n, 1):][:n:n]})
	}
	return out
}

// Section returns the content of the first section of that name.
func (f *File) Section(name string) ([]byte, bool) {
	for _, s := range f.Sections() {
		if s.Name == name {
			return s.Data, true
		}
	}
	return nil, false
}
