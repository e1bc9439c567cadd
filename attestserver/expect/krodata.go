package expect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"unique"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
)

// Krodata is the twin of probe.Krodata. The read-only data must be the signed
// kernel's in every piece but two places: what the kernel seals only after it has
// started (a run of pieces, a small part of all), and the last piece, whose end
// lies behind the signed data. Which they are is learned when the reference is
// taken; what they hold is different on each boot, so that the first answer of a
// boot session is kept and the later ones are held against it.
type Krodata struct{ user }

// kindKrodata is the sort of reference.
const kindKrodata = "krodata"

// sealedShare: what is sealed late may be at most one part in sealedShare of all.
// Debian's kernels have one part in twenty.
const sealedShare = 12

// rodataRef is the head of a reference; the signed bytes follow it.
type rodataRef struct {
	Base   uint64   `json:"base"`
	Size   uint64   `json:"size"`   // as /proc/iomem has it: whole pages
	Signed uint64   `json:"signed"` // bytes that the signed kernel has
	Pieces []uint32 `json:"pieces"` // that differ from boot to boot
	IDTAt  uint64   `json:"idt_at"`
	IDT    []byte   `json:"idt"`
}

// maxRodataHead bounds the head of a reference, in bytes: it has this size, with
// blanks behind it.
const maxRodataHead = 16 << 10

// Notes of a boot session.
const (
	keptSealed = "krodata.sealed" // the pieces, as they were first: *sealedPieces
	noteWant   = "krodata.want"   // their numbers, as JSON parameters
)

// sealedPieces are the differences (appendDifference) of what a kernel sealed from the
// signed pieces of these numbers.
type sealedPieces struct {
	pieces      []uint32
	differences []unique.Handle[string]
}

// Name implements protocol.Expectation.
func (*Krodata) Name() string { return protocol.OpKrodata }

var krodataAsk = []byte(`{"pieces":null}`)

// Params implements protocol.Expectation.
func (*Krodata) Params(_ io.Reader, st *protocol.ImageState) ([]byte, error) {
	if want := st.Notes[noteWant]; want != nil && st.Kept[keptSealed] == nil {
		return want, nil
	}
	return krodataAsk, nil
}

// EnrolParams implements protocol.Enroller.
func (*Krodata) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error) { return krodataAsk, nil }

// Enrolled implements protocol.Enroller.
func (*Krodata) Enrolled(st *protocol.ImageState, refs protocol.References) (bool, error) {
	r, err := refs.Open(kindKrodata, protocol.ReferenceKey(st))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// Enrol implements protocol.Enroller.
func (e *Krodata) Enrol(in protocol.JudgeInput) []protocol.Finding {
	taking.Lock()
	defer taking.Unlock()
	j := &judge{op: e.Name()}
	var d protocol.KrodataData
	if !j.read(in, &d) {
		return j.list
	}
	err := in.Refs.Write(kindKrodata, protocol.ReferenceKey(in.State), func(w protocol.Draft) error {
		return e.withKernel(func(f *os.File, size int64) error { return e.take(j, in.Key, &d, w, f, size) })
	})
	if err != nil && !errors.Is(err, errRefused) {
		j.unjudged(err)
	}
	return j.list
}

// take writes a reference from the signed kernel, if the answer fits it.
func (e *Krodata) take(j *judge, key protocol.OpKey, d *protocol.KrodataData, w io.WriterAt, kernel io.ReaderAt, fileSize int64) error {
	// What the mask says of the text is known; its sites, some MiB, are not needed here.
	mask := &ktextmask.Mask{TextBase: e.kernel.base, TextSize: e.kernel.size}
	stock, signed, err := mask.OpenRodata(kernel, fileSize, d.Base)
	if err != nil {
		j.fatal(ReasonKrodataPlace, "%d bytes at %#x: %v", d.Size, d.Base, err)
		return errRefused
	}
	defer stock.Close()
	if d.Size < signed || d.Size-signed >= protocol.PageSize {
		j.fatal(ReasonKrodataPlace, "%d bytes at %#x, signed are %d bytes", d.Size, d.Base, signed)
		return errRefused
	}
	ref := rodataRef{Base: d.Base, Size: d.Size, Signed: signed, IDTAt: d.IDTAt, IDT: d.IDT}
	bad, err := ref.copy(w, stock, pieceMACs{key.MACs(), d.MACs})
	if err != nil {
		return err
	}
	if !ref.choose(bad) {
		j.fatal(ReasonKrodataImage, "differs from the signed kernel at %s", spans(bad, d.Size))
	}
	e.idt(j, d.IDTAt, d.IDT)
	if len(j.list) > 0 {
		return errRefused
	}
	return ref.writeHead(w)
}

// copy writes the signed data, zeros behind it up to the end of its page, and lists the
// pieces whose digest is another one.
func (r *rodataRef) copy(w io.WriterAt, stock io.Reader, macs pieceMACs) (bad []int, err error) {
	buf := make([]byte, protocol.KtextGranule)
	for at := uint64(0); at < r.Size; at += protocol.KtextGranule {
		i := int(at / protocol.KtextGranule)
		b := buf[:r.length(uint32(i))]
		clear(b)
		if at < r.Signed {
			if _, err := io.ReadFull(stock, b[:min(uint64(len(b)), r.Signed-at)]); err != nil {
				return nil, fmt.Errorf("read-only data of the signed kernel: %w", err)
			}
		}
		if !macs.same(i, b) {
			bad = append(bad, i)
		}
		if _, err := w.WriteAt(b, maxRodataHead+int64(at)); err != nil {
			return nil, err
		}
	}
	return bad, nil
}

// choose takes the pieces that differ from boot to boot: all from the first to
// the last that differs from the signed kernel now, which must be a small part of
// all, and the last of all where it ends behind the signed data.
func (r *rodataRef) choose(differ []int) bool {
	last := int((r.Size - 1) / protocol.KtextGranule)
	tail := len(differ) > 0 && differ[len(differ)-1] == last && r.Signed < r.Size
	if tail {
		differ = differ[:len(differ)-1]
	}
	if len(differ) > 0 {
		from, to := differ[0], differ[len(differ)-1]
		if (to-from+1)*sealedShare > last+1 || to-from >= protocol.MaxRodataPieces {
			return false
		}
		for n := from; n <= to; n++ {
			r.Pieces = append(r.Pieces, uint32(n))
		}
	}
	if tail {
		r.Pieces = append(r.Pieces, uint32(last))
	}
	return true
}

// kernelImage is the size of the address range of the kernel image, behind which
// modules lie. Vectors that are reserved lead into code of the kernel's start,
// which is not there any more.
const kernelImage = 1 << 30

// idt checks that every gate leads into the kernel.
func (e *Krodata) idt(j *judge, at uint64, table []byte) {
	le := binary.LittleEndian
	for i := 0; i < len(table); i += 16 {
		g := table[i:]
		if g[5]&0x80 == 0 {
			continue
		}
		to := uint64(le.Uint16(g)) | uint64(le.Uint16(g[6:]))<<16 | uint64(le.Uint32(g[8:]))<<32
		if to < e.kernel.base || to-e.kernel.base >= kernelImage-(e.kernel.base&(kernelImage-1)) {
			j.fatal(ReasonIDT, "vector %d of the table at %#x leads to %#x, outside of the kernel", i/16, at, to)
		}
	}
}

func (r *rodataRef) writeHead(w io.WriterAt) error {
	head, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(head) > maxRodataHead {
		return fmt.Errorf("read-only data reference: head of %d bytes", len(head))
	}
	_, err = w.WriteAt(append(head, bytes.Repeat([]byte(" "), maxRodataHead-len(head))...), 0)
	return err
}

// Judge implements protocol.Expectation.
func (e *Krodata) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.KrodataData
	if !j.read(in, &d) {
		return j.list
	}
	file, err := in.Refs.Open(kindKrodata, protocol.ReferenceKey(in.State))
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	defer file.Close()
	ref, err := readRodata(file)
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	if d.Base != ref.Base || d.Size != ref.Size {
		j.fatal(ReasonKrodataPlace, "%d bytes at %#x, enrolled are %d bytes at %#x", d.Size, d.Base, ref.Size, ref.Base)
		return j.list
	}
	if d.IDTAt != ref.IDTAt || !bytes.Equal(d.IDT, ref.IDT) {
		j.fatal(ReasonIDT, "the interrupt table at %#x is not the one enrolled at %#x: %s", d.IDTAt, ref.IDTAt, vectors(d.IDT, ref.IDT))
	}
	macs := pieceMACs{in.Key.MACs(), d.MACs}
	bad, err := ref.compare(file, macs)
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	if len(bad) > 0 {
		j.fatal(ReasonKrodata, "differs from the signed kernel at %s", spans(bad, ref.Size))
	}
	if err := e.sealed(j, in.State, ref, file, &d, macs); err != nil {
		j.unjudged(err)
	}
	return j.list
}

func readRodata(file protocol.Reference) (*rodataRef, error) {
	buf := pieces.Get().(*[protocol.LeafSize]byte)
	defer pieces.Put(buf)
	head := buf[:maxRodataHead]
	if _, err := file.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read-only data reference: %w", err)
	}
	r := new(rodataRef)
	if err := json.Unmarshal(head, r); err != nil {
		return nil, fmt.Errorf("read-only data reference: %w", err)
	}
	if uint64(file.Size()) != maxRodataHead+r.Size {
		return nil, fmt.Errorf("read-only data reference of %d bytes, want %d", file.Size(), maxRodataHead+r.Size)
	}
	return r, nil
}

// compare lists the pieces that must be the signed kernel's and are not.
func (r *rodataRef) compare(file io.ReaderAt, macs pieceMACs) (bad []int, err error) {
	buf := pieces.Get().(*[protocol.LeafSize]byte)
	defer pieces.Put(buf)
	for i := 0; i*protocol.KtextMACSize < len(macs.list); i++ {
		if slices.Contains(r.Pieces, uint32(i)) {
			continue
		}
		b := buf[:r.length(uint32(i))]
		if err := r.signed(file, uint32(i), b); err != nil {
			return nil, err
		}
		if !macs.same(i, b) {
			bad = append(bad, i)
		}
	}
	return bad, nil
}

// signed reads what the signed kernel has where a piece is.
func (r *rodataRef) signed(file io.ReaderAt, piece uint32, b []byte) error {
	_, err := file.ReadAt(b, maxRodataHead+int64(piece)*protocol.KtextGranule)
	if errors.Is(err, io.EOF) { // the file ends with the last piece: its size was compared
		return nil
	}
	return err
}

func (r *rodataRef) length(piece uint32) int {
	return int(min(protocol.KtextGranule, r.Size-uint64(piece)*protocol.KtextGranule))
}

// sealed holds what was sealed late against the first answer of the session. The
// first of them only says which pieces there are, the second brings them.
func (e *Krodata) sealed(j *judge, st *protocol.ImageState, ref *rodataRef, file io.ReaderAt, d *protocol.KrodataData, macs pieceMACs) error {
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	if len(ref.Pieces) == 0 {
		return nil
	}
	known, _ := st.Kept[keptSealed].(*sealedPieces)
	if known != nil && !slices.Equal(known.pieces, ref.Pieces) { // another reference was taken
		delete(st.Kept, keptSealed)
		known = nil
	}
	first := known == nil
	if first && len(d.Raw) == 0 {
		want, err := protocol.EncodeOp(protocol.KrodataParams{Pieces: ref.Pieces})
		if err == nil {
			st.Notes[noteWant] = want
		}
		return err
	}
	var raw, note []byte
	if first {
		known = &sealedPieces{ref.Pieces, make([]unique.Handle[string], len(ref.Pieces))}
		total := 0
		for _, p := range ref.Pieces {
			total += ref.length(p)
		}
		var err error
		if raw, err = unpackPieces(d.Raw, total); err != nil {
			j.fatal(ReasonMalformed, "%v", err)
			return nil
		}
	}
	var bad []int
	buf := pieces.Get().(*[protocol.LeafSize]byte)
	defer pieces.Put(buf)
	for i, p := range ref.Pieces {
		piece := buf[:ref.length(p)]
		if err := ref.signed(file, p, piece); err != nil {
			return err
		}
		if first {
			note = appendDifference(note[:0], piece, raw[:len(piece)])
			known.differences[i] = unique.Make(string(note))
			piece, raw = raw[:len(piece)], raw[len(piece):]
		} else {
			applyDifference(piece, known.differences[i].Value())
		}
		if !macs.same(int(p), piece) {
			bad = append(bad, int(p))
		}
	}
	switch {
	case len(bad) > 0:
		j.fatal(ReasonKrodataSealed, "what the kernel sealed at its start has changed at %s", spans(bad, ref.Size))
	case first && len(j.list) == 0:
		st.Keep(keptSealed, known)
	}
	return nil
}

// vectors names the gates that differ.
func vectors(have, want []byte) string {
	var out []int
	for i := 0; i+16 <= min(len(have), len(want)); i += 16 {
		if !bytes.Equal(have[i:i+16], want[i:i+16]) {
			out = append(out, i/16)
		}
	}
	return fmt.Sprintf("vectors %v", out)
}
