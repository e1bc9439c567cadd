package ktextmask

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"portcullis/images/textpatch"
)

// Addresses of the kernel that the tests make: laid out as Debian's is.
const (
	textAddr   = 0xffffffff81000000
	rodataAddr = 0xffffffff82000000
	initAddr   = 0xffffffff83000000
	altAddr    = 0xffffffff83100000
	notesAddr  = 0xffffffff83200000
	constAddr  = 0xffffffff83300000
	textSize   = 3*Granule + 0x800
)

// sample is a kernel with known sites.
type sample struct {
	text, rodata, init, alt, notes, consts []byte
	jumps, calls, tramps, entries          []Range
}

const (
	sampleJumps   = 600
	sampleCalls   = 150
	sampleEntries = 550
)

func rel32(b []byte, at int, base uint64, to uint64) {
	binary.LittleEndian.PutUint32(b[at:], uint32(to-(base+uint64(at))))
}

func newSample() *sample {
	s := &sample{text: bytes.Repeat([]byte{0xcc}, textSize)}
	at := 0
	put := func(code []byte) uint64 {
		copy(s.text[at:], code)
		a := textAddr + uint64(at)
		at += len(code) + 1 // one byte of other code after each
		return a
	}
	// Static call trampolines, 8 bytes aligned.
	for range 20 {
		s.tramps = append(s.tramps, Range{uint32(at), 5})
		copy(s.text[at:], append([]byte{0xe9, 1, 2, 3, 0}, textpatch.TrampolineEnd...))
		at += 8
	}
	s.rodata = make([]byte, 64)
	base := uint64(rodataAddr)
	for i := range sampleJumps {
		code, length := textpatch.Nop5, uint32(5)
		switch i % 4 {
		case 1:
			code, length = textpatch.Nop2, 2
		case 2:
			code, length = []byte{0xeb, 0x10}, 2
		case 3:
			code, length = []byte{0xe9, 0x10, 0, 0, 0}, 5
		}
		a := put(code)
		e := len(s.rodata)
		s.rodata = append(s.rodata, make([]byte, 16)...)
		rel32(s.rodata, e, base, a)
		rel32(s.rodata, e+4, base, a+uint64(length)+0x10)
		s.rodata[e+8] = 2
		s.jumps = append(s.jumps, Range{uint32(a - textAddr), length})
	}
	for i := range sampleCalls {
		code := []byte{0xe8, 0, 0, 0, 0}
		to := textAddr + uint64(s.tramps[i%len(s.tramps)].Off)
		binary.LittleEndian.PutUint32(code[1:], uint32(to-(textAddr+uint64(at)+5)))
		a := put(code)
		e := len(s.rodata)
		s.rodata = append(s.rodata, make([]byte, 8)...)
		rel32(s.rodata, e, base, a)
		s.calls = append(s.calls, Range{uint32(a - textAddr), 5})
	}
	s.rodata = append(s.rodata, make([]byte, 64)...)
	fentry := uint64(textAddr + textSize - 0x100)
	s.init = make([]byte, 32)
	for range sampleEntries {
		code := []byte{0xe8, 0, 0, 0, 0}
		binary.LittleEndian.PutUint32(code[1:], uint32(fentry-(textAddr+uint64(at)+5)))
		a := put(code)
		s.init = binary.LittleEndian.AppendUint64(s.init, a)
		s.entries = append(s.entries, Range{uint32(a - textAddr), 5})
	}
	s.init = append(s.init, make([]byte, 64)...)
	s.alt = make([]byte, 2*altEntry)
	rel32(s.alt, 0, altAddr, textAddr+textSize-0x200)
	s.alt[12] = 7
	rel32(s.alt, altEntry, altAddr, initAddr) // of other code: freed after boot
	s.alt[altEntry+12] = 7
	s.notes = []byte("\x04\x00\x00\x00\x08\x00\x00\x00\x03\x00\x00\x00GNU\x00abcdefgh")
	s.consts = make([]byte, 4)
	rel32(s.consts, 0, constAddr, textAddr+textSize-0x300)
	return s
}

// elf writes the sections as a 64-bit ELF file.
func (s *sample) elf() []byte {
	type sec struct {
		name  string
		addr  uint64
		flags uint64
		data  []byte
	}
	secs := []sec{
		{"", 0, 0, nil}, {".text", textAddr, 6, s.text}, {".rodata", rodataAddr, 3, s.rodata},
		{".init.data", initAddr + 0x1000, 3, s.init}, {".init.text", initAddr, 6, bytes.Repeat([]byte{0x90}, 0x100)},
		{".altinstructions", altAddr, 2, s.alt}, {".notes", notesAddr, 2, s.notes},
		{"runtime_ptr_dentry_hashtable", constAddr, 2, s.consts},
	}
	// .init.data was filled with absolute addresses, which do not depend on where it lies.
	names := []byte{0}
	nameAt := make([]uint32, len(secs)+1)
	for i, x := range secs {
		nameAt[i] = uint32(len(names))
		names = append(append(names, x.name...), 0)
	}
	nameAt[len(secs)] = uint32(len(names))
	names = append(names, ".shstrtab\x00"...)
	le := binary.LittleEndian
	out := make([]byte, 64)
	offset := make([]uint64, len(secs)+1)
	for i, x := range secs {
		offset[i] = uint64(len(out))
		out = append(out, x.data...)
	}
	offset[len(secs)] = uint64(len(out))
	out = append(out, names...)
	shoff := uint64(len(out))
	header := func(name, kind uint32, flags, addr, off, size uint64) {
		out = le.AppendUint32(le.AppendUint32(out, name), kind)
		for _, v := range []uint64{flags, addr, off, size, 0, 1, 0} {
			out = le.AppendUint64(out, v)
		}
	}
	for i, x := range secs {
		kind := uint32(1)
		if i == 0 {
			kind = 0
		}
		header(nameAt[i], kind, x.flags, x.addr, offset[i], uint64(len(x.data)))
	}
	header(nameAt[len(secs)], 3, 0, 0, offset[len(secs)], uint64(len(names)))
	// link and info are the two words that header wrote as one.
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], 2)
	le.PutUint16(out[18:], 62)
	le.PutUint32(out[20:], 1)
	le.PutUint64(out[40:], shoff)
	le.PutUint16(out[52:], 64)
	le.PutUint16(out[54:], 56)
	le.PutUint16(out[58:], 64)
	le.PutUint16(out[60:], uint16(len(secs)+1))
	le.PutUint16(out[62:], uint16(len(secs)))
	return out
}

// bzImage wraps a kernel as the kernel's build does.
func bzImage(t testing.TB, vmlinux []byte, how string) []byte {
	t.Helper()
	var packed bytes.Buffer
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(vmlinux)))
	switch how {
	case "zstd":
		w, err := zstd.NewWriter(&packed)
		if err != nil {
			t.Fatal(err)
		}
		write(t, w, vmlinux)
		packed.Write(size)
	case "xz":
		w, err := xz.NewWriter(&packed)
		if err != nil {
			t.Fatal(err)
		}
		write(t, w, vmlinux)
		packed.Write(size)
	case "gzip":
		write(t, gzip.NewWriter(&packed), vmlinux)
	}
	b := make([]byte, 5*512)
	b[offSetupSects] = 4
	copy(b[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[offKernelVersion:], 0x400)
	copy(b[0x600:], "6.12.0-test (builder@host) #1 SMP\x00")
	binary.LittleEndian.PutUint32(b[offPayload:], 0)
	binary.LittleEndian.PutUint32(b[offPayloadLength:], uint32(packed.Len()))
	return append(b, packed.Bytes()...)
}

func write(t testing.TB, w interface {
	Write([]byte) (int, error)
	Close() error
}, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
