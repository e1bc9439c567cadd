package luks2

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// The two copies begin with different magics, so that a scan cannot mistake one for
// the other.
var (
	magicPrimary   = [6]byte{'L', 'U', 'K', 'S', 0xba, 0xbe}
	magicSecondary = [6]byte{'S', 'K', 'U', 'L', 0xba, 0xbe}
)

// headerSizes are the sizes a copy may have, and so the offsets of the secondary one.
var headerSizes = []int64{16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20}

// binaryHeader is the first 512 bytes of a copy (specification, section 2.1). All
// numbers are big endian; the rest of binarySize is zero.
type binaryHeader struct {
	Magic     [6]byte
	Version   uint16
	Size      uint64 // of this copy, JSON included
	Sequence  uint64
	Label     [48]byte
	Algorithm [32]byte
	Salt      [64]byte // makes the checksum of equal metadata differ
	UUID      [40]byte
	Subsystem [48]byte
	Offset    uint64 // of this copy on the device
	_         [184]byte
	Checksum  [64]byte
}

// Where the checksum lies in a copy.
const (
	checksumAt  = 448
	checksumEnd = 512
)

// copyState says what was found where a copy of the header belongs.
type rawCopy struct {
	state CopyState
	bin   binaryHeader
	json  []byte // JSON area without the zeros behind it
}

// readCopy reads the copy at offset. A copy that is not valid is a state, not an
// error: the other one may do. Nothing larger than MaxHeaderSize is allocated, and
// only where a plausible binary header stands.
func readCopy(r io.ReaderAt, size, offset int64, magic [6]byte) (rawCopy, error) {
	var c rawCopy
	c.state = CopyMissing
	if offset < 0 || size-offset < binarySize {
		return c, nil
	}
	first := make([]byte, checksumEnd)
	if _, err := r.ReadAt(first, offset); err != nil {
		return c, &Error{ReasonDevice, err}
	}
	if _, err := binary.Decode(first, binary.BigEndian, &c.bin); err != nil {
		return c, &Error{ReasonDevice, err}
	}
	if c.bin.Magic != magic {
		return c, nil
	}
	c.state = CopyDamaged
	if !knownSize(c.bin.Size) || c.bin.Offset != uint64(offset) || int64(c.bin.Size) > size-offset ||
		offset != 0 && c.bin.Size != uint64(offset) {
		return c, nil
	}
	if c.bin.Version != 2 {
		return c, nil
	}
	all := make([]byte, c.bin.Size)
	if _, err := r.ReadAt(all, offset); err != nil {
		return c, &Error{ReasonDevice, err}
	}
	// The first sector may have changed since it was read above: what was checked
	// is what counts.
	if !bytes.Equal(all[:checksumEnd], first) || fixed(c.bin.Algorithm[:]) != "sha256" {
		return c, nil
	}
	sum := checksum(all)
	if !bytes.Equal(sum[:], c.bin.Checksum[:len(sum)]) {
		return c, nil
	}
	text := all[binarySize:]
	if end := bytes.IndexByte(text, 0); end >= 0 {
		if len(bytes.Trim(text[end:], "\x00")) != 0 {
			return c, nil
		}
		text = text[:end]
	}
	c.json, c.state = bytes.Clone(text), CopyGood
	return c, nil
}

// encodeCopy returns the bytes of one copy.
func encodeCopy(b binaryHeader, text []byte) ([]byte, error) {
	if int64(len(text)) >= int64(b.Size)-binarySize {
		return nil, refuse(ReasonFull, "%d bytes of metadata do not fit in %d", len(text), b.Size-binarySize)
	}
	b.Checksum = [64]byte{}
	all := make([]byte, b.Size)
	if _, err := binary.Encode(all, binary.BigEndian, &b); err != nil {
		return nil, &Error{ReasonUsage, err}
	}
	copy(all[binarySize:], text)
	sum := checksum(all)
	copy(all[checksumAt:], sum[:])
	return all, nil
}

// checksum is over the whole copy with the checksum's own field as zeros.
func checksum(all []byte) [sha256.Size]byte {
	var zero [checksumEnd - checksumAt]byte
	h := sha256.New()
	h.Write(all[:checksumAt])
	h.Write(zero[:])
	h.Write(all[checksumEnd:])
	return [sha256.Size]byte(h.Sum(nil))
}

func knownSize(n uint64) bool {
	for _, s := range headerSizes {
		if n == uint64(s) {
			return true
		}
	}
	return false
}

// fixed is the text of a field that is padded with zeros.
func fixed(b []byte) string {
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b)
}
