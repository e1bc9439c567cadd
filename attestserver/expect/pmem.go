package expect

import (
	"encoding/hex"
	"io"

	"portcullis/attestserver/protocol"
)

// Pmem is the twin of probe.Pmem.
type Pmem struct{ user }

// extraPages are asked for beside one page of every segment.
const extraPages = 32

// Name implements protocol.Expectation.
func (*Pmem) Name() string { return protocol.OpPmem }

// Params implements protocol.Expectation.
func (*Pmem) Params(r io.Reader, _ *protocol.ImageState) ([]byte, error) {
	seed, err := draw(r, 32)
	if err != nil {
		return nil, err
	}
	return protocol.EncodeOp(protocol.PmemParams{Seed: hex.EncodeToString(seed), Extra: extraPages})
}

// Judge implements protocol.Expectation.
func (e *Pmem) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var p protocol.PmemParams
	if err := protocol.DecodeOp(in.Params, protocol.MaxParams, &p); err != nil {
		j.unjudged(err)
		return j.list
	}
	var d protocol.PmemData
	if !j.read(in, &d) {
		return j.list
	}
	for _, p := range d.Patches {
		j.fatal(ReasonPatchedCode, "process %d: %d pages of %s are no longer the file's, the first at %#x", p.PID, p.Pages, p.Path, p.Offset)
	}
	if len(d.Pages) == 0 {
		j.fatal(ReasonNoPages, "no page was read, %d were given up", d.Vanished)
	}
	macs, buf := in.Key.MACs(), make([]byte, protocol.PageSize)
	for _, page := range d.Pages {
		if err := e.page(j, macs, buf, p.Seed, page); err != nil {
			j.unjudged(err)
			break
		}
	}
	return j.list
}

// page judges a page; it is read into buf, which has its size.
func (e *Pmem) page(j *judge, macs *protocol.MACs, buf []byte, seed string, p protocol.Page) error {
	path := p.Path
	if path == protocol.RuncClone {
		path = runcPath
	}
	f, found, err := e.inImage(path)
	if err != nil {
		return err
	}
	switch {
	case !found:
		j.fatal(ReasonUnknownCode, "process %d has mapped %s", p.PID, p.Path)
		return nil
	case macs.PickPage(seed, p.Path, p.Segment, p.Pick) != p.Offset:
		j.fatal(ReasonPick, "%s: page at %#x was not asked for", p.Path, p.Offset)
		return nil
	case p.Offset >= uint64(f.Size()):
		j.fatal(ReasonChangedCode, "process %d: %s is mapped at %#x, the image's file ends before", p.PID, p.Path, p.Offset)
		return nil
	}
	if err := readPage(f, p.Offset, buf); err != nil {
		return err
	}
	if macs.PageMAC(p.Path, p.Offset, buf) != p.MAC {
		j.fatal(ReasonChangedCode, "process %d: the page at %#x of %s is not the image's", p.PID, p.Offset, p.Path)
	}
	return nil
}
