package expect

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
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
	ktextAsk = []byte(`{"raw":false}`)
	ktextRaw = []byte(`{"raw":true}`)
)

// Name implements protocol.Expectation.
func (*Ktext) Name() string { return protocol.OpKtext }

// Params implements protocol.Expectation.
func (*Ktext) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return ktextAsk, nil }

// EnrolParams implements protocol.Enroller.
func (*Ktext) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error) { return ktextRaw, nil }

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

// Enrol implements protocol.Enroller.
func (e *Ktext) Enrol(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	text, err := unpackText(in.Output.Data, e.kernel.size)
	if err != nil {
		j.fatal(ReasonMalformed, "%v", err)
		return j.list
	}
	if !protocol.SameDigest(in.Output.Digest, in.Key.Digest(e.Name(), in.Params, textMACs(in.Key, text))) {
		j.fatal(ReasonDigest, "the digest is not of this text")
		return j.list
	}
	mask, err := e.mask()
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	if bad := notStock(mask, text); len(bad) > 0 {
		j.fatal(ReasonKtextImage, "differs from the signed kernel at %s", spans(bad, e.kernel.size))
		return j.list
	}
	if err := in.Refs.Put(kindKtext, protocol.ReferenceKey(in.State), text); err != nil {
		j.unjudged(err)
	}
	return j.list
}

func textMACs(key protocol.OpKey, text []byte) (macs []byte) {
	for piece := range slices.Chunk(text, protocol.KtextGranule) {
		m := key.KtextMAC(len(macs)/protocol.KtextMACSize, piece)
		macs = append(macs, m[:]...)
	}
	return macs
}

// notStock lists the pieces that differ from the signed kernel where the kernel
// patches nothing, and those where a run-time site held no legal form: the agent
// zeroes all that do.
func notStock(mask *ktextmask.Mask, text []byte) (bad []int) {
	all, zero := mask.All(), mask.RunTime()
	for _, r := range zero {
		if i := int(r.Off) / ktextmask.Granule; !slices.Contains(bad, i) && len(bytes.Trim(text[r.Off:r.Off+r.Len], "\x00")) > 0 {
			bad = append(bad, i)
		}
	}
	buf := make([]byte, ktextmask.Granule)
	for i, want := range mask.Stock {
		n := copy(buf, text[i*ktextmask.Granule:])
		ktextmask.Zero(buf[:n], uint64(i)*ktextmask.Granule, all)
		if sha256.Sum256(buf[:n]) != want && !slices.Contains(bad, i) {
			bad = append(bad, i)
		}
	}
	slices.Sort(bad)
	return bad
}

// unpackText unpacks what the agent sent: exactly size bytes.
func unpackText(packed []byte, size uint64) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(1<<20), zstd.WithDecoderMaxMemory(protocol.MaxKernelText))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	text := make([]byte, size)
	if _, err := io.ReadFull(d, text); err != nil {
		return nil, fmt.Errorf("kernel text of %d bytes is wanted: %w", size, err)
	}
	if n, err := d.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("kernel text is longer than %d bytes", size)
	}
	return text, nil
}

// Judge implements protocol.Expectation.
func (e *Ktext) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.KtextData
	if !j.read(in, &d) {
		return j.list
	}
	if d.Base != e.kernel.base || d.Size != e.kernel.size {
		j.fatal(ReasonKtextPlace, "%d bytes at %#x, signed are %d bytes at %#x", d.Size, d.Base, e.kernel.size, e.kernel.base)
		return j.list
	}
	if d.Mask != e.kernel.maskSum {
		j.fatal(ReasonKtextMask, "mask %.16s was applied, signed is %.16s", d.Mask, e.kernel.maskSum)
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
