package luks2

import (
	"io"
)

// CopyState is what was found where a copy of the header belongs.
type CopyState string

// States of a copy.
const (
	CopyGood    CopyState = "good"
	CopyMissing CopyState = "missing" // nothing that looks like one
	CopyDamaged CopyState = "damaged" // begins like one, but is not whole
	CopyOld     CopyState = "old"     // whole, but an earlier one than the other
)

// Health says how the two copies of the header were found.
type Health struct {
	Primary   CopyState `json:"primary"`
	Secondary CopyState `json:"secondary"`
}

// Good: both copies are whole and the same.
func (h Health) Good() bool { return h.Primary == CopyGood && h.Secondary == CopyGood }

// Header is the metadata of a volume in memory. Changes reach the device with
// Write, all at once. It is not safe for concurrent use.
type Header struct {
	// Limits of what Unlock may spend on a keyslot; Read sets DefaultLimits.
	Limits Limits

	bin  binaryHeader
	json []byte // as read or last written
	meta *metadata
	size int64 // of the device, bytes
}

// Read reads the header of a device of size bytes: the newest whole copy of the two.
// Metadata that break a rule of the format, an unfinished re-encryption and what
// this package does not understand are refused with their Reason. Health is valid
// with a nil error only.
func Read(r io.ReaderAt, size int64) (*Header, Health, error) {
	primary, secondary, err := readCopies(r, size)
	if err != nil {
		return nil, Health{}, err
	}
	best := &primary
	switch {
	case primary.state == CopyGood && secondary.state == CopyGood:
		switch a, b := primary.bin.Sequence, secondary.bin.Sequence; {
		case a > b:
			secondary.state = CopyOld
		case a < b:
			primary.state, best = CopyOld, &secondary
		case string(primary.json) != string(secondary.json):
			// cryptsetup believes the primary one in this case; so does Read.
			secondary.state = CopyOld
		}
	case secondary.state == CopyGood:
		best = &secondary
	case primary.state != CopyGood:
		if primary.state == CopyMissing && secondary.state == CopyMissing {
			return nil, Health{}, refuse(ReasonNoHeader, "there is no LUKS2 header")
		}
		return nil, Health{}, refuse(ReasonBadHeader, "primary header %s, secondary header %s", primary.state, secondary.state)
	}
	h := &Header{Limits: DefaultLimits(), bin: best.bin, json: best.json, size: size}
	if h.meta, err = parse(best.json); err != nil {
		return nil, Health{}, err
	}
	if err := h.meta.check(int64(h.bin.Size)); err != nil {
		return nil, Health{}, err
	}
	if _, err := h.payloadSize(); err != nil {
		return nil, Health{}, err
	}
	return h, Health{Primary: primary.state, Secondary: secondary.state}, nil
}

// readCopies reads both copies. The secondary one stands behind the primary one,
// whose size only a whole primary one tells; otherwise it is looked for at every
// offset that the format allows.
func readCopies(r io.ReaderAt, size int64) (primary, secondary rawCopy, err error) {
	if primary, err = readCopy(r, size, 0, magicPrimary); err != nil {
		return
	}
	if primary.state == CopyGood {
		secondary, err = readCopy(r, size, int64(primary.bin.Size), magicSecondary)
		return
	}
	secondary.state = CopyMissing
	for _, offset := range headerSizes {
		c, err := readCopy(r, size, offset, magicSecondary)
		if err != nil {
			return primary, secondary, err
		}
		if c.state == CopyGood {
			return primary, c, nil
		}
		if c.state == CopyDamaged {
			secondary = c
		}
	}
	return primary, secondary, nil
}

// UUID of the volume.
func (h *Header) UUID() string { return fixed(h.bin.UUID[:]) }

// Label of the volume, often empty.
func (h *Header) Label() string { return fixed(h.bin.Label[:]) }

// Sequence counts the writes of the header.
func (h *Header) Sequence() uint64 { return h.bin.Sequence }

// SectorSize of the payload in bytes: 512 to 4096.
func (h *Header) SectorSize() int { return h.meta.segments[0].SectorSize }

// PayloadOffset is where the payload begins on the device, in bytes.
func (h *Header) PayloadOffset() int64 { return int64(h.meta.segments[0].Offset) }

// PayloadSize is the size of the payload in bytes.
func (h *Header) PayloadSize() int64 {
	n, _ := h.payloadSize() // Read and Format have checked it
	return n
}

func (h *Header) payloadSize() (int64, error) {
	s := h.meta.segments[0]
	n, dynamic, _ := s.size()
	room := h.size - int64(s.Offset)
	if dynamic {
		n = room - room%int64(s.SectorSize)
	}
	if n <= 0 || n > room {
		return 0, refuse(ReasonSize, "a device of %d bytes does not hold the payload at %d", h.size, s.Offset)
	}
	return n, nil
}

// JSON returns the metadata as they were read or last written.
func (h *Header) JSON() []byte { return append([]byte(nil), h.json...) }
