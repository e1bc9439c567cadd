package modtext

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

const exportsHeader = "# portcullis kernel exports v1: address name\n"

// Limits of a list of exports.
const (
	MaxExportsFile = 4 << 20
	maxExports     = 64 << 10
	maxSymbolName  = 512
)

// ksymEntry is the size of struct kernel_symbol with relative addresses, as on every
// 64-bit x86: s32 value, s32 name, s32 namespace.
const ksymEntry = 12

// Exports are the symbols that the kernel gives to modules: a list in order of names.
type Exports struct {
	file  []byte
	lines []uint32 // where each begins
}

// BuildExports reads the exported symbols out of a vmlinux that has its section
// headers, and writes the list, sorted by name. A kernel without modules has none.
func BuildExports(vmlinux []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return nil, fmt.Errorf("vmlinux: %w", err)
	}
	strs, err := sectionAt(f, "__ksymtab_strings")
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, name := range []string{"__ksymtab", "__ksymtab_gpl"} {
		tab, err := sectionAt(f, name)
		if err != nil {
			return nil, err
		}
		if len(tab.data)%ksymEntry != 0 {
			return nil, fmt.Errorf("%s: %d bytes are no list of %d-byte entries", name, len(tab.data), ksymEntry)
		}
		for at := 0; at < len(tab.data); at += ksymEntry {
			value, symbol := tab.relative(at), strs.text(tab.relative(at+4))
			if !validSymbol(symbol) {
				return nil, fmt.Errorf("%s: entry %d has no name", name, at/ksymEntry)
			}
			lines = append(lines, fmt.Sprintf("%s\x00%016x", symbol, value))
		}
	}
	slices.Sort(lines)
	out := []byte(exportsHeader)
	for _, l := range lines {
		name, value, _ := strings.Cut(l, "\x00")
		out = fmt.Appendf(out, "%s %s\n", value, name)
	}
	if _, err := ParseExports(out); err != nil {
		return nil, err
	}
	return out, nil
}

type addressed struct {
	addr uint64
	data []byte
}

func sectionAt(f *elf.File, name string) (addressed, error) {
	s := f.Section(name)
	if s == nil {
		return addressed{}, nil
	}
	if s.Type == elf.SHT_NOBITS || s.Size > MaxExportsFile {
		return addressed{}, fmt.Errorf("vmlinux: section %s of %d bytes", name, s.Size)
	}
	data, err := s.Data()
	if err != nil {
		return addressed{}, fmt.Errorf("vmlinux: section %s: %w", name, err)
	}
	return addressed{s.Addr, data}, nil
}

func (s addressed) relative(at int) uint64 {
	return s.addr + uint64(at) + uint64(int64(int32(binary.LittleEndian.Uint32(s.data[at:]))))
}

// text is the string at a, "" where there is none.
func (s addressed) text(a uint64) string {
	if a < s.addr || a-s.addr >= uint64(len(s.data)) {
		return ""
	}
	name, _, ok := bytes.Cut(s.data[a-s.addr:], []byte{0})
	if !ok {
		return ""
	}
	return string(name)
}

func validSymbol(s string) bool {
	return s != "" && len(s) <= maxSymbolName && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// ParseExports reads a list and refuses one that is not exactly what BuildExports
// writes. It keeps file.
func ParseExports(file []byte) (*Exports, error) {
	if len(file) > MaxExportsFile || !bytes.HasPrefix(file, []byte(exportsHeader)) {
		return nil, fmt.Errorf("kernel exports: want at most %d bytes that begin with %q", MaxExportsFile, exportsHeader)
	}
	e := &Exports{file: file}
	last := ""
	for at := len(exportsHeader); at < len(file); {
		n := bytes.IndexByte(file[at:], '\n')
		if n < 18 || file[at+16] != ' ' || len(e.lines) == maxExports {
			return nil, fmt.Errorf("kernel exports: line %d: want an address and a name", len(e.lines)+2)
		}
		name := string(file[at+17 : at+n])
		if _, err := parseAddress(file[at : at+16]); err != nil || !validSymbol(name) || name <= last {
			return nil, fmt.Errorf("kernel exports: line %d: %.80q is no address and name in order", len(e.lines)+2, file[at:at+n])
		}
		e.lines = append(e.lines, uint32(at))
		last, at = name, at+n+1
	}
	return e, nil
}

func parseAddress(b []byte) (uint64, error) {
	v, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil || fmt.Sprintf("%016x", v) != string(b) {
		return 0, errors.New("not an address of 16 hex digits")
	}
	return v, nil
}

// Len is how many symbols there are.
func (e *Exports) Len() int { return len(e.lines) }

// Lookup is the address of a symbol.
func (e *Exports) Lookup(name string) (uint64, bool) {
	i := sort.Search(len(e.lines), func(i int) bool { return string(e.name(i)) >= name })
	if i == len(e.lines) || string(e.name(i)) != name {
		return 0, false
	}
	v, err := strconv.ParseUint(string(e.file[e.lines[i]:][:16]), 16, 64)
	return v, err == nil
}

func (e *Exports) name(i int) []byte {
	line := e.file[e.lines[i]+17:]
	return line[:bytes.IndexByte(line, '\n')]
}
