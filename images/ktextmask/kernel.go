package ktextmask

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
)

// kernel is an opened vmlinux: stripped of symbols, with its section headers.
type kernel struct {
	text     section
	exec     []section // every section that holds code, text first
	sections map[string]section
}

type section struct {
	addr uint64
	data []byte
}

func (s section) contains(a uint64) bool { return a >= s.addr && a-s.addr < uint64(len(s.data)) }

func openKernel(vmlinux []byte) (*kernel, error) {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return nil, fmt.Errorf("vmlinux: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("vmlinux: machine %s, want x86-64", f.Machine)
	}
	k := &kernel{sections: map[string]section{}}
	for _, s := range f.Sections {
		if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_ALLOC == 0 || s.Size > maxKernel {
			continue
		}
		data, err := s.Data()
		if err != nil {
			return nil, fmt.Errorf("vmlinux: section %s: %w", s.Name, err)
		}
		sec := section{addr: s.Addr, data: data}
		k.sections[s.Name] = sec
		if s.Flags&elf.SHF_EXECINSTR != 0 {
			k.exec = append(k.exec, sec)
		}
	}
	k.text = k.sections[".text"]
	if len(k.text.data) == 0 || uint64(len(k.text.data)) > maxTextSize {
		return nil, errors.New("vmlinux: no .text section of a sane size")
	}
	if len(k.sections[".rodata"].data) == 0 {
		return nil, errors.New("vmlinux: no .rodata section")
	}
	return k, nil
}

// code returns n bytes of code at a, or nil where there is none.
func (k *kernel) code(a uint64, n int) []byte {
	for _, s := range k.exec {
		if s.contains(a) && uint64(len(s.data))-(a-s.addr) >= uint64(n) {
			return s.data[a-s.addr:][:n]
		}
	}
	return nil
}

// notes is the digest of what /sys/kernel/notes shows.
func (k *kernel) notes() ([32]byte, error) {
	n := k.sections[".notes"]
	if len(n.data) == 0 {
		return [32]byte{}, errors.New("vmlinux: no .notes section")
	}
	return sha256.Sum256(n.data), nil
}

// relative reads a 32-bit offset that counts from its own address, the form
// of nearly all of the kernel's tables of sites.
func (s section) relative(at int) uint64 {
	return s.addr + uint64(at) + uint64(int64(int32(binary.LittleEndian.Uint32(s.data[at:]))))
}
