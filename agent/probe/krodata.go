package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"portcullis/attestserver/protocol"
)

// Krodata reads all of the kernel's read-only data and keys a digest over every
// piece, and finds the interrupt descriptor table. The table of system calls,
// operation tables of file systems and devices, and security hooks lie there.
//
// It finds an entry of the system call table or of another constant table that
// points elsewhere, a changed interrupt handler, and any change of what the
// kernel sealed when it had started.
//
// It cannot see a second table that the processor was told to use instead of
// the one in its place, changed data that is not read-only, what was put into
// the sealed part before the agent's first answer, nor a kernel that shows a
// clean copy to whoever reads it.
type Krodata struct{ Host }

// Name implements protocol.Probe.
func (*Krodata) Name() string { return protocol.OpKrodata }

// Run implements protocol.Probe.
func (p *Krodata) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.KrodataParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	iomem, err := read(p.Proc, "iomem")
	if err != nil {
		return protocol.Output{}, err
	}
	f, err := os.Open(filepath.Join(p.Proc, "kcore"))
	if err != nil {
		return protocol.Output{}, err
	}
	defer f.Close()
	data, err := region(f, iomem, "Kernel rodata", protocol.MaxKernelRodata)
	if err != nil {
		return protocol.Output{}, err
	}
	d := protocol.KrodataData{Base: data.base, Size: data.size}
	var raw []byte
	if d.MACs, raw, err = data.pieces(ctx, key, want.Pieces); err != nil {
		return protocol.Output{}, err
	}
	if len(want.Pieces) > 0 {
		if d.Raw, err = packSites(raw); err != nil {
			return protocol.Output{}, err
		}
	}
	bss, err := region(f, iomem, "Kernel bss", protocol.MaxKernelRodata)
	if err != nil {
		return protocol.Output{}, err
	}
	text, err := region(f, iomem, "Kernel code", protocol.MaxKernelText)
	if err != nil {
		return protocol.Output{}, err
	}
	if d.IDTAt, d.IDT, err = findIDT(ctx, bss, text); err != nil {
		return protocol.Output{}, err
	}
	return answer(key, p.Name(), params, d)
}

// region opens a part of the kernel image by its name in /proc/iomem.
func region(f *os.File, iomem []byte, name string, max uint64) (*kernelText, error) {
	start, end, err := parseKernel(iomem, name, max)
	if err != nil {
		return nil, err
	}
	t, err := locate(f, start, end-start+1)
	if err != nil {
		return nil, err
	}
	t.File = f
	return t, nil
}

// pieces keys a digest over each piece and gathers those that are wanted.
func (t *kernelText) pieces(ctx context.Context, key protocol.OpKey, want []uint32) (macs, raw []byte, err error) {
	buf := make([]byte, span)
	kept, keyed := map[uint32][]byte{}, key.MACs()
	for _, w := range want {
		kept[w] = nil
	}
	for at := uint64(0); at < t.size; at += span {
		if err := alive(ctx); err != nil {
			return nil, nil, err
		}
		b := buf[:min(span, t.size-at)]
		if _, err := t.ReadAt(b, t.offset+int64(at)); err != nil {
			return nil, nil, fmt.Errorf("kernel read-only data at +%#x: %w", at, err)
		}
		for i := 0; i < len(b); i += protocol.KtextGranule {
			n := uint32((at + uint64(i)) / protocol.KtextGranule)
			piece := b[i:min(i+protocol.KtextGranule, len(b))]
			m := keyed.KtextMAC(int(n), piece)
			macs = append(macs, m[:]...)
			if _, ok := kept[n]; ok {
				kept[n] = append([]byte(nil), piece...)
			}
		}
	}
	for _, w := range want {
		raw = append(raw, kept[w]...)
	}
	return macs, raw, nil
}

// gates is how many of the 256 entries must be handlers in kernel text for a
// page to be taken for the table: 32 exceptions and most vectors have one.
const gates = 128

// findIDT finds the interrupt descriptor table: the first page of zeroed data
// that is full of interrupt gates into kernel text (Intel SDM volume 3, 7.11).
// The instruction that would name it shows user space an alias or nothing.
func findIDT(ctx context.Context, bss, text *kernelText) (uint64, []byte, error) {
	buf := make([]byte, span)
	for at := uint64(0); at < bss.size; at += span {
		if err := alive(ctx); err != nil {
			return 0, nil, err
		}
		b := buf[:min(span, bss.size-at)]
		if _, err := bss.ReadAt(b, bss.offset+int64(at)); err != nil {
			return 0, nil, fmt.Errorf("kernel data at +%#x: %w", at, err)
		}
		for i := 0; i+protocol.IDTSize <= len(b); i += protocol.IDTSize {
			if page := b[i : i+protocol.IDTSize]; handlers(page, text.base, text.size) >= gates {
				return bss.base + at + uint64(i), append([]byte(nil), page...), nil
			}
		}
	}
	return 0, nil, errors.New("no interrupt descriptor table in the kernel's data")
}

// handlers counts the present gates that lead into the kernel's text.
func handlers(page []byte, base, size uint64) (n int) {
	le := binary.LittleEndian
	for ; len(page) >= 16; page = page[16:] {
		to := uint64(le.Uint16(page)) | uint64(le.Uint16(page[6:]))<<16 | uint64(le.Uint32(page[8:]))<<32
		if page[5]&0x80 != 0 && page[5]&0x0e == 0x0e && to >= base && to-base < size {
			n++
		}
	}
	return n
}
