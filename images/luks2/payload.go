package luks2

import (
	"crypto/aes"
	"io"

	"golang.org/x/crypto/xts"
)

// Payload is the decrypted view of a volume without the kernel: for factories and
// tests. It reads and writes at any offset; whole sectors are fastest. Several
// readers may share it, a writer may not be joined by anybody.
type Payload struct {
	d      PayloadDevice
	cipher *xts.Cipher
	offset int64
	size   int64
	sector int64
	tweak  int64
}

// PayloadDevice is where a Payload lies.
type PayloadDevice interface {
	io.ReaderAt
	io.WriterAt
}

// Payload opens the view. The volume key is proven against the digest; the caller
// may wipe it afterwards.
func (h *Header) Payload(d PayloadDevice, volumeKey []byte) (*Payload, error) {
	if _, err := h.verify(volumeKey); err != nil {
		return nil, err
	}
	c, err := xts.NewCipher(aes.NewCipher, volumeKey)
	if err != nil {
		return nil, &Error{ReasonUnsupported, err}
	}
	s := h.meta.segments[0]
	return &Payload{d, c, int64(s.Offset), h.PayloadSize(), int64(s.SectorSize), int64(s.IVTweak)}, nil
}

// Size of the payload in bytes.
func (p *Payload) Size() int64 { return p.size }

// ReadAt decrypts len(b) bytes at off (io.ReaderAt).
func (p *Payload) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, refuse(ReasonUsage, "offset %d", off)
	}
	whole := len(b)
	b = b[:max(0, min(int64(whole), p.size-off))]
	done := 0
	for done < len(b) {
		n := int(min(maxPiece-off%p.sector, int64(len(b)-done)))
		if err := p.readPiece(b[done:done+n], off); err != nil {
			return done, err
		}
		done, off = done+n, off+int64(n)
	}
	if done < whole {
		return done, io.EOF
	}
	return done, nil
}

// readPiece decrypts in place where b is whole sectors, and beside b otherwise.
func (p *Payload) readPiece(b []byte, off int64) error {
	first, last := p.around(off, len(b))
	buf := b
	if last-first != int64(len(b)) {
		buf = make([]byte, last-first)
		defer clear(buf)
	}
	if _, err := p.d.ReadAt(buf, p.offset+first); err != nil {
		return &Error{ReasonDevice, err}
	}
	p.crypt(buf, first, true)
	if last-first != int64(len(b)) {
		copy(b, buf[off-first:])
	}
	return nil
}

// maxPiece bounds the buffers of one read or write, in bytes; a multiple of every
// sector size.
const maxPiece = 1 << 20

// WriteAt encrypts b to off (io.WriterAt). Sectors written in part are read first.
// Nothing is written beyond the payload.
func (p *Payload) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off > p.size || int64(len(b)) > p.size-off {
		return 0, refuse(ReasonSize, "%d bytes at %d do not fit in a payload of %d", len(b), off, p.size)
	}
	buf := make([]byte, min(maxPiece, int64(len(b))+2*p.sector))
	defer clear(buf)
	done := 0
	for done < len(b) {
		n := int(min(maxPiece-off%p.sector, int64(len(b)-done)))
		if err := p.writePiece(buf, b[done:done+n], off); err != nil {
			return done, err
		}
		done, off = done+n, off+int64(n)
	}
	return done, nil
}

// writePiece writes what fits into buf with the whole sectors around it.
func (p *Payload) writePiece(buf, b []byte, off int64) error {
	first, last := p.around(off, len(b))
	buf = buf[:last-first]
	for _, edge := range []int64{first, last - p.sector} {
		if edge < off || edge+p.sector > off+int64(len(b)) {
			if _, err := p.ReadAt(buf[edge-first:edge-first+p.sector], edge); err != nil {
				return err
			}
		}
	}
	copy(buf[off-first:], b)
	p.crypt(buf, first, false)
	if _, err := p.d.WriteAt(buf, p.offset+first); err != nil {
		return &Error{ReasonDevice, err}
	}
	return nil
}

// around returns the whole sectors around n bytes at off.
func (p *Payload) around(off int64, n int) (first, last int64) {
	first = off - off%p.sector
	last = off + int64(n) + p.sector - 1
	return first, last - last%p.sector
}

// crypt works in place on whole sectors. plain64 counts in 512 bytes, also where the
// sectors are larger.
func (p *Payload) crypt(b []byte, off int64, decrypt bool) {
	for ; len(b) > 0; b, off = b[p.sector:], off+p.sector {
		s, iv := b[:p.sector], uint64(off/ivSector+p.tweak)
		if decrypt {
			p.cipher.Decrypt(s, s, iv)
		} else {
			p.cipher.Encrypt(s, s, iv)
		}
	}
}
