package expect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
	"portcullis/images/manifest"
)

// Ktext is the twin of probe.Ktext. Its reference is the whole text, taken once
// per image and CPU class, since the kernel fits itself to the CPU at boot. At
// that moment the text must equal the signed kernel in every byte that the
// kernel does not patch by itself; the reference then covers those it patches
// at boot, and only the sites of the mask are left out for good.
type Ktext struct{ user }

// kindKtext is the sort of reference.
const kindKtext = "ktext"

var (
	ktextAsk   = []byte(`{"sites":false}`)
	ktextEnrol = []byte(`{"sites":true}`)
)

// Name implements protocol.Expectation.
func (*Ktext) Name() string { return protocol.OpKtext }

// Params implements protocol.Expectation.
func (*Ktext) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return ktextAsk, nil }

// EnrolParams implements protocol.Enroller.
func (*Ktext) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error) { return ktextEnrol, nil }

// Enrolled implements protocol.Enroller.
func (*Ktext) Enrolled(st *protocol.ImageState, refs protocol.References) (bool, error) {
	r, err := refs.Open(kindKtext, protocol.ReferenceKey(st))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// Enrol implements protocol.Enroller. The reference is put together from the
// signed kernel's own text and from what the PC's kernel has in the sites that
// it patched at boot; the digest of every piece must come out as the PC sent it,
// so that a byte that was changed elsewhere cannot get into the reference.
func (e *Ktext) Enrol(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.KtextData
	if !j.readUpTo(in, &d, protocol.MaxEnrolData) || !e.rightPlace(j, &d) {
		return j.list
	}
	mask, err := e.mask()
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	text, err := e.stockText(mask)
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	ktextmask.Zero(text, 0, mask.RunTime())
	if err := applySites(text, d.Sites, mask.Boot); err != nil {
		j.fatal(ReasonMalformed, "%v", err)
		return j.list
	}
	if odd := mask.Settled().Odd(text); len(odd) > 0 {
		j.fatal(ReasonKtextImage, "%d static calls are none that the kernel makes, the first at +%#x", len(odd), odd[0].Off)
		return j.list
	}
	if bad := differing(in.Key, text, d.MACs); len(bad) > 0 {
		j.fatal(ReasonKtextImage, "differs from the signed kernel at %s", spans(bad, e.kernel.size))
		return j.list
	}
	if err := in.Refs.Put(kindKtext, protocol.ReferenceKey(in.State), text); err != nil {
		j.unjudged(err)
	}
	return j.list
}

// stockText reads the signed kernel's text from the image's kernel file.
func (e *Ktext) stockText(mask *ktextmask.Mask) ([]byte, error) {
	f, err := os.Open(filepath.Join(e.Dir, manifest.Kernel))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// What unpacking took is given back: enrolments are rare, memory is not ample.
	defer debug.FreeOSMemory()
	return mask.StockText(f, st.Size())
}

// applySites puts the bytes of the boot-time sites into text.
func applySites(text, packed []byte, sites []ktextmask.Range) error {
	size := 0
	for _, r := range sites {
		size += int(r.Len)
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(max(uint64(size)+1, 2<<20)))
	if err != nil {
		return err
	}
	defer d.Close()
	raw, err := d.DecodeAll(packed, nil)
	if err != nil {
		return fmt.Errorf("sites: %w", err)
	}
	if rest, err := ktextmask.Scatter(text, raw, sites); err != nil || len(rest) > 0 {
		return fmt.Errorf("sites: %d bytes, want %d", len(raw), size)
	}
	return nil
}

// differing lists the pieces of text whose digest is another one.
func differing(key protocol.OpKey, text, macs []byte) (bad []int) {
	i := 0
	for piece := range slices.Chunk(text, protocol.KtextGranule) {
		if m := key.KtextMAC(i, piece); !bytes.Equal(m[:], macs[i*protocol.KtextMACSize:][:protocol.KtextMACSize]) {
			bad = append(bad, i)
		}
		i++
	}
	return bad
}

// rightPlace checks that the text is where and what the signed kernel's is.
func (e *Ktext) rightPlace(j *judge, d *protocol.KtextData) bool {
	if d.Base != e.kernel.base || d.Size != e.kernel.size {
		j.fatal(ReasonKtextPlace, "%d bytes at %#x, signed are %d bytes at %#x", d.Size, d.Base, e.kernel.size, e.kernel.base)
		return false
	}
	if d.Mask != e.kernel.maskSum {
		j.fatal(ReasonKtextMask, "mask %.16s was applied, signed is %.16s", d.Mask, e.kernel.maskSum)
		return false
	}
	return true
}

// Judge implements protocol.Expectation.
func (e *Ktext) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.KtextData
	if !j.read(in, &d) || !e.rightPlace(j, &d) {
		return j.list
	}
	bad, err := e.compare(in, d.MACs)
	if err != nil {
		j.unjudged(err)
	} else if len(bad) > 0 {
		j.fatal(ReasonKtext, "differs from the reference at %s", spans(bad, e.kernel.size))
	}
	return j.list
}

// compare lists the pieces whose keyed digest is not that of the reference.
func (e *Ktext) compare(in protocol.JudgeInput, macs []byte) (bad []int, err error) {
	ref, err := in.Refs.Open(kindKtext, protocol.ReferenceKey(in.State))
	if err != nil {
		return nil, err
	}
	defer ref.Close()
	if uint64(ref.Size()) != e.kernel.size {
		return nil, fmt.Errorf("kernel text reference of %d bytes, want %d", ref.Size(), e.kernel.size)
	}
	buf := make([]byte, protocol.KtextGranule)
	for i := 0; i*protocol.KtextMACSize < len(macs); i++ {
		at := uint64(i) * protocol.KtextGranule
		b := buf[:min(protocol.KtextGranule, e.kernel.size-at)]
		if _, err := ref.ReadAt(b, int64(at)); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if m := in.Key.KtextMAC(i, b); !bytes.Equal(m[:], macs[i*protocol.KtextMACSize:][:protocol.KtextMACSize]) {
			bad = append(bad, i)
		}
	}
	return bad, nil
}

// spans writes pieces as ranges of offsets, neighbours joined.
func spans(pieces []int, size uint64) string {
	var out []string
	for i := 0; i < len(pieces); {
		k := i
		for k+1 < len(pieces) && pieces[k+1] == pieces[k]+1 {
			k++
		}
		end := min(uint64(pieces[k]+1)*protocol.KtextGranule, size)
		if out = append(out, fmt.Sprintf("+%#x..+%#x", pieces[i]*protocol.KtextGranule, end)); len(out) == 16 {
			out = append(out, fmt.Sprintf("and more, %d pieces in all", len(pieces)))
			break
		}
		i = k + 1
	}
	return strings.Join(out, ", ")
}
