package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
)

// Ktext reads all of the kernel's text, zeroes the bytes that the stock kernel
// patches itself at run time (the mask of the image), and keys a digest over
// every piece. Pieces are read by several goroutines, in no fixed order.
//
// It finds inline hooks, ftrace and kprobe sites that were switched on, and any
// other change of kernel code outside of the mask.
//
// It cannot see changed kernel data or read-only data (function pointers),
// modules' text, code in other memory, a kernel that shows a clean copy of its
// text to whoever reads it, and what hides in a masked site: there only a JMP,
// CALL or NOP of 2 to 6 bytes can stand.
type Ktext struct {
	Host
	once sync.Once
	mask *ktextmask.Mask
	sum  string
	skip []ktextmask.Range
	err  error
}

// Name implements protocol.Probe.
func (*Ktext) Name() string { return protocol.OpKtext }

// Run implements protocol.Probe.
func (p *Ktext) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.KtextParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	if p.once.Do(p.load); p.err != nil {
		return protocol.Output{}, p.err
	}
	text, err := p.find()
	if err != nil {
		return protocol.Output{}, err
	}
	defer text.Close()
	if want.Raw {
		return p.raw(ctx, key, params, text)
	}
	began := time.Now()
	macs, err := p.sweep(ctx, key, text)
	if err != nil {
		return protocol.Output{}, err
	}
	return answer(key, p.Name(), params, protocol.KtextData{Base: text.base, Size: text.size, Mask: p.sum,
		MACs: macs, Swept: time.Since(began).Microseconds()})
}

func (p *Ktext) load() {
	b, err := read(p.Mask)
	if err != nil {
		p.err = err
		return
	}
	if p.mask, p.err = ktextmask.Decode(b); p.err != nil {
		return
	}
	sum := sha256.Sum256(b)
	p.sum, p.skip = hex.EncodeToString(sum[:]), p.mask.RunTime()
	p.mask = nil // only what is skipped is wanted from here on
}

// kernelText is the text as /proc/kcore shows it.
type kernelText struct {
	*os.File
	base   uint64 // virtual address
	size   uint64 // bytes
	offset int64  // in the file
}

func (p *Ktext) find() (*kernelText, error) {
	iomem, err := read(p.Proc, "iomem")
	if err != nil {
		return nil, err
	}
	start, end, err := parseKernelCode(iomem)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(p.Proc, "kcore"))
	if err != nil {
		return nil, err
	}
	t, err := locate(f, start, end-start+1)
	if err != nil {
		f.Close()
		return nil, err
	}
	t.File = f
	return t, nil
}

// again opens the same text once more.
func (t *kernelText) again() (*kernelText, error) {
	f, err := os.Open(t.Name())
	if err != nil {
		return nil, err
	}
	return &kernelText{File: f, base: t.base, size: t.size, offset: t.offset}, nil
}

// sweep keys a digest over every piece of the text.
func (p *Ktext) sweep(ctx context.Context, key protocol.OpKey, t *kernelText) ([]byte, error) {
	pieces := int((t.size + protocol.KtextGranule - 1) / protocol.KtextGranule)
	macs := make([]byte, pieces*protocol.KtextMACSize)
	workers := min(runtime.NumCPU(), 4)
	errs := make(chan error, workers)
	for w := range workers {
		go func() {
			// An open /proc/kcore has one buffer in the kernel, through which every
			// read of text goes: goroutines that shared it would mix their pieces.
			own, err := t.again()
			if err != nil {
				errs <- err
				return
			}
			defer own.Close()
			buf := make([]byte, protocol.KtextGranule)
			for i := w; i < pieces; i += workers {
				piece, err := p.piece(ctx, own, i, buf)
				if err != nil {
					errs <- err
					return
				}
				m := key.KtextMAC(i, piece)
				copy(macs[i*protocol.KtextMACSize:], m[:])
			}
			errs <- nil
		}()
	}
	var first error
	for range workers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return macs, first
}

// piece reads piece i into buf and zeroes what the mask leaves out.
func (p *Ktext) piece(ctx context.Context, t *kernelText, i int, buf []byte) ([]byte, error) {
	if err := alive(ctx); err != nil {
		return nil, err
	}
	at := uint64(i) * protocol.KtextGranule
	b := buf[:min(protocol.KtextGranule, t.size-at)]
	if _, err := t.ReadAt(b, t.offset+int64(at)); err != nil {
		return nil, fmt.Errorf("kernel text at +%#x: %w", at, err)
	}
	ktextmask.Zero(b, at, p.skip)
	return b, nil
}

// raw answers with the text itself, packed; the digest is over the text.
func (p *Ktext) raw(ctx context.Context, key protocol.OpKey, params []byte, t *kernelText) (protocol.Output, error) {
	var packed bytes.Buffer
	enc, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return protocol.Output{}, err
	}
	h := key.NewDigest(p.Name(), params)
	w := io.MultiWriter(h, enc)
	buf := make([]byte, protocol.KtextGranule)
	for at := uint64(0); at < t.size; at += protocol.KtextGranule {
		piece, err := p.piece(ctx, t, int(at/protocol.KtextGranule), buf)
		if err != nil {
			return protocol.Output{}, err
		}
		if _, err := w.Write(piece); err != nil {
			return protocol.Output{}, err
		}
	}
	if err := enc.Close(); err != nil {
		return protocol.Output{}, err
	}
	return protocol.Output{Digest: protocol.Sum(h), Data: packed.Bytes()}, nil
}
