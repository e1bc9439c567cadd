package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
)

// Ktext reads all of the kernel's text, zeroes the sites that the stock kernel
// patches itself at run time (the mask of the image) where they hold what the
// kernel can have put there, and keys a digest over every piece. Pieces are read
// by several goroutines, in no fixed order.
//
// It finds inline hooks, ftrace and kprobe sites that were switched on, hooks in
// jump labels and static calls, and any other change of kernel code.
//
// It cannot see changed kernel data or read-only data (function pointers),
// modules' text, code in other memory, a kernel that shows a clean copy of its
// text to whoever reads it, nor a masked site that was set to another of its
// legal forms: a branch switched the other way, or a static call to another
// address inside of the kernel's own text.
type Ktext struct {
	Host
	once  sync.Once
	sum   string // of the mask file, hex
	sites *ktextmask.Sites
	boot  []ktextmask.Range // patched at boot
	err   error
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
	d := protocol.KtextData{Base: text.base, Size: text.size, Mask: p.sum}
	var sites []byte
	if d.MACs, sites, err = p.sweep(ctx, key, text, want.Sites); err != nil {
		return protocol.Output{}, err
	}
	if want.Sites {
		if d.Sites, err = packSites(sites); err != nil {
			return protocol.Output{}, err
		}
	}
	return answer(key, p.Name(), params, d)
}

func (p *Ktext) load() {
	b, err := read(p.Mask)
	if err != nil {
		p.err = err
		return
	}
	mask, err := ktextmask.Decode(b)
	if err != nil {
		p.err = err
		return
	}
	sum := sha256.Sum256(b)
	p.sum, p.sites, p.boot = hex.EncodeToString(sum[:]), mask.Sites(), mask.Boot
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

// span is how much of the text one goroutine takes at a time: whole pieces.
const span = 64 * protocol.KtextGranule

// sweep keys a digest over every piece of the text. On demand it also gathers
// the bytes of the boot-time sites.
func (p *Ktext) sweep(ctx context.Context, key protocol.OpKey, t *kernelText, gather bool) (macs, sites []byte, err error) {
	pieces := int((t.size + protocol.KtextGranule - 1) / protocol.KtextGranule)
	spans := int((t.size + span - 1) / span)
	macs = make([]byte, pieces*protocol.KtextMACSize)
	gathered := make([][]byte, spans)
	workers := min(runtime.NumCPU(), 4, spans)
	errs := make(chan error, workers)
	for w := range workers {
		go func() {
			errs <- p.worker(t, func(r *reader) error {
				keyed := key.MACs()
				for i := w; i < spans; i += workers {
					text, err := r.span(ctx, i)
					if err != nil {
						return err
					}
					for at := 0; at < len(text); at += protocol.KtextGranule {
						n := i*span/protocol.KtextGranule + at/protocol.KtextGranule
						m := keyed.KtextMAC(n, text[at:min(at+protocol.KtextGranule, len(text))])
						copy(macs[n*protocol.KtextMACSize:], m[:])
					}
					if gather {
						gathered[i] = ktextmask.Gather(nil, text, uint64(i)*span, p.boot)
					}
				}
				return nil
			})
		}()
	}
	for range workers {
		err = errors.Join(err, <-errs)
	}
	return macs, bytes.Join(gathered, nil), err
}

// packSites makes one zstd frame of the sites' bytes.
func packSites(sites []byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	return enc.EncodeAll(sites, nil), nil
}

// reader is one goroutine's own view of the text.
type reader struct {
	*kernelText
	sites *ktextmask.Sites
	buf   []byte
}

// worker gives each goroutine its own open /proc/kcore: an open one has a single
// buffer in the kernel, through which every read of text goes, so that
// goroutines that shared it would mix their pieces.
func (p *Ktext) worker(t *kernelText, work func(*reader) error) error {
	f, err := os.Open(t.Name())
	if err != nil {
		return err
	}
	defer f.Close()
	own := *t
	own.File = f
	return work(&reader{kernelText: &own, sites: p.sites, buf: make([]byte, span+2*ktextmask.Margin)})
}

// The kernel changes a site in steps (text_poke_bp: a breakpoint first, the
// rest, the first byte last). A site that is met between them is read again, up
// to pokeTries times.
const (
	pokeTries = 100
	pokeWait  = time.Millisecond
)

// span reads span i and zeroes the sites that hold a legal form.
func (r *reader) span(ctx context.Context, i int) ([]byte, error) {
	if err := alive(ctx); err != nil {
		return nil, err
	}
	at := uint64(i) * span
	from, to := at-min(at, ktextmask.Margin), min(at+span+ktextmask.Margin, r.size)
	b := r.buf[:to-from]
	if err := r.read(b, from); err != nil {
		return nil, err
	}
	for _, odd := range r.sites.Clear(b, from) {
		if err := r.settle(ctx, odd, b[uint64(odd.Off)-from:][:odd.Len]); err != nil {
			return nil, err
		}
	}
	return b[at-from : min(at+span, r.size)-from], nil
}

// settle reads one site until it holds a legal form, and zeroes it then.
func (r *reader) settle(ctx context.Context, site ktextmask.Range, code []byte) error {
	for range pokeTries {
		if err := alive(ctx); err != nil {
			return err
		}
		time.Sleep(pokeWait)
		if err := r.read(code, uint64(site.Off)); err != nil {
			return err
		}
		if r.sites.Legal(site, code) {
			clear(code)
			return nil
		}
	}
	return nil
}

func (r *reader) read(b []byte, at uint64) error {
	if _, err := r.ReadAt(b, r.offset+int64(at)); err != nil {
		return fmt.Errorf("kernel text at +%#x: %w", at, err)
	}
	return nil
}
