package expect

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

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
	taking.Lock()
	defer taking.Unlock()
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
	raw, err := unpackSites(d.Sites, mask.Boot)
	if err != nil {
		j.fatal(ReasonMalformed, "%v", err)
		return j.list
	}
	err = in.Refs.Write(kindKtext, protocol.ReferenceKey(in.State), func(w protocol.Draft) error {
		var bad []int
		err := e.withKernel(func(f *os.File, size int64) (err error) {
			bad, err = copyText(w, f, size, mask, raw, pieceMACs{in.Key.MACs(), d.MACs})
			return err
		})
		if err != nil {
			return err
		}
		odd, err := mask.Settled().Odd(w)
		switch {
		case err != nil:
			return err
		case len(odd) > 0:
			j.fatal(ReasonKtextImage, "%d static calls are none that the kernel makes, the first at +%#x", len(odd), odd[0].Off)
			return errRefused
		case len(bad) > 0:
			j.fatal(ReasonKtextImage, "differs from the signed kernel at %s", spans(bad, e.kernel.size))
			return errRefused
		}
		return nil
	})
	if err != nil && !errors.Is(err, errRefused) {
		j.unjudged(err)
	}
	return j.list
}

// copyText writes the signed kernel's text with raw, the bytes of the boot-time sites, and
// without those of the run-time sites, and lists the pieces whose digest is another one.
func copyText(w io.WriterAt, kernel io.ReaderAt, size int64, mask *ktextmask.Mask, raw []byte, macs pieceMACs) (bad []int, err error) {
	text, err := mask.OpenText(kernel, size)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	run := mask.RunTime()
	for i := 0; ; i++ {
		piece, err := text.Next()
		if errors.Is(err, io.EOF) {
			return bad, nil
		}
		if err != nil {
			return nil, err
		}
		at := uint64(i) * ktextmask.Granule
		ktextmask.Zero(piece, at, run)
		if raw, err = ktextmask.Scatter(piece, at, raw, mask.Boot); err != nil {
			return nil, err
		}
		if !macs.same(i, piece) {
			bad = append(bad, i)
		}
		if _, err := w.WriteAt(piece, int64(at)); err != nil {
			return nil, err
		}
	}
}

// unpackSites unpacks the bytes of the boot-time sites.
func unpackSites(packed []byte, sites []ktextmask.Range) ([]byte, error) {
	size := 0
	for _, r := range sites {
		size += int(r.Len)
	}
	raw, err := unpackPieces(packed, size)
	if err != nil {
		return nil, fmt.Errorf("sites: %w", err)
	}
	return raw, nil
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
func (e *Ktext) compare(in protocol.JudgeInput, list []byte) (bad []int, err error) {
	ref, err := in.Refs.Open(kindKtext, protocol.ReferenceKey(in.State))
	if err != nil {
		return nil, err
	}
	defer ref.Close()
	if uint64(ref.Size()) != e.kernel.size {
		return nil, fmt.Errorf("kernel text reference of %d bytes, want %d", ref.Size(), e.kernel.size)
	}
	macs := pieceMACs{in.Key.MACs(), list}
	piece := pieces.Get().(*[protocol.LeafSize]byte)
	defer pieces.Put(piece)
	for i := 0; i*protocol.KtextMACSize < len(list); i++ {
		at := uint64(i) * protocol.KtextGranule
		b := piece[:min(protocol.KtextGranule, e.kernel.size-at)]
		if _, err := ref.ReadAt(b, int64(at)); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if !macs.same(i, b) {
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
