package expect_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
	"portcullis/images/modtext/modtest"
)

// bzImage is a kernel file with nothing but text in it, stored uncompressed by gzip.
func bzImage(text []byte, size int) []byte {
	const at = 4096
	le := binary.LittleEndian
	elf := make([]byte, at)
	copy(elf, "\x7fELF\x02\x01")
	le.PutUint64(elf[32:], 64)
	le.PutUint16(elf[56:], 1)
	le.PutUint32(elf[64:], 1)
	le.PutUint64(elf[72:], at)
	le.PutUint64(elf[80:], textBase)
	le.PutUint64(elf[96:], uint64(size))
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(append(elf, text...))
	_ = w.Close()
	b := make([]byte, 5*512)
	b[0x1f1] = 4
	copy(b[0x202:], "HdrS")
	le.PutUint32(b[0x24c:], uint32(packed.Len()))
	return append(b, packed.Bytes()...)
}

// mask leaves out bytes 100 to 104, a jump label to byte 512, for good and 200
// to 204 at boot.
func (m *machine) mask() *ktextmask.Mask {
	mask := &ktextmask.Mask{Release: "6.12.0-test", Notes: sha256.Sum256([]byte("notes")), TextBase: textBase, TextSize: uint64(len(m.text)),
		Classes: []ktextmask.Class{{Name: ktextmask.JumpLabel, Ranges: []ktextmask.Range{{Off: 100, Len: 5}}, Targets: []uint32{512}}},
		Boot:    []ktextmask.Range{{Off: 200, Len: 5}}, Without: m.without}
	if m.without != nil { // no static keys: the site of the jump label is a static call that settles at boot
		mask.Once = []ktextmask.Class{{Name: ktextmask.StaticCall, Ranges: mask.Classes[0].Ranges}}
		mask.Classes = nil
		mask.Boot = []ktextmask.Range{{Off: 100, Len: 5}, {Off: 200, Len: 5}}
	}
	zeroed := bytes.Clone(m.text)
	ktextmask.Zero(zeroed, 0, mask.RunTime())
	ktextmask.Zero(zeroed, 0, mask.Boot)
	for piece := range slices.Chunk(zeroed, ktextmask.Granule) {
		mask.Stock = append(mask.Stock, sha256.Sum256(piece))
	}
	return mask
}

// live is the read-only data of the kernel that runs: sealed values in three
// pieces, and what lies behind its end.
func (m *machine) live() []byte {
	b := append(bytes.Clone(m.rodata), make([]byte, 100)...)
	for i := range 3 {
		copy(b[(20+i)*protocol.KtextGranule+64:], "an address of this boot")
	}
	copy(b[len(b)-8:], "leftover")
	return b
}

// interrupts is a table of gates to a place in the text.
func interrupts(to uint64) []byte {
	b := make([]byte, protocol.IDTSize)
	for g := b; len(g) > 0; g = g[16:] {
		binary.LittleEndian.PutUint16(g, uint16(to))
		binary.LittleEndian.PutUint16(g[2:], 0x10)
		g[5] = 0x8e
		binary.LittleEndian.PutUint16(g[6:], uint16(to>>16))
		binary.LittleEndian.PutUint32(g[8:], uint32(to>>32))
	}
	return b
}

// kernel writes /proc/kcore and /proc/iomem with text in them.
func (m *machine) kernel(text []byte) { m.kernelImage(text, m.live()) }

func (m *machine) kernelImage(text, rodata []byte) {
	const at = 0x1000
	head := make([]byte, at)
	copy(head, "\x7fELF\x02")
	le := binary.LittleEndian
	le.PutUint64(head[32:], 64)
	le.PutUint16(head[54:], 56)
	le.PutUint16(head[56:], 3)
	for i, v := range []uint64{0xff11000000000000, textBase} { // the direct map comes first and must not be taken
		p := head[64+56*i:]
		le.PutUint32(p, 1)
		le.PutUint64(p[8:], at)
		le.PutUint64(p[16:], v)
		le.PutUint64(p[24:], textPhys)
		le.PutUint64(p[32:], uint64(len(text)+len(rodata)+3*protocol.IDTSize))
	}
	all := slices.Concat(head, text, rodata, make([]byte, protocol.IDTSize), m.idt, make([]byte, protocol.IDTSize))
	area := head[64+56*2:] // where modules are
	le.PutUint32(area, 1)
	le.PutUint64(area[8:], uint64(len(all)))
	le.PutUint64(area[16:], modtest.TextAt)
	le.PutUint64(area[32:], moduleArea)
	copy(all, head)
	all = append(append(all, m.bridge...), make([]byte, moduleArea-len(m.bridge))...)
	m.write(all, "proc/kcore")
	ro, bss := textPhys+len(text), textPhys+len(text)+len(rodata)
	m.write(fmt.Appendf(nil, "00001000-0009ffff : System RAM\n  %08x-%08x : Kernel code\n  %08x-%08x : Kernel rodata\n  %08x-%08x : Kernel bss\n",
		textPhys, ro-1, ro, bss-1, bss, bss+3*protocol.IDTSize-1), "proc/iomem")
}
