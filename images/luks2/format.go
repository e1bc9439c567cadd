package luks2

import (
	"crypto/rand"
	"fmt"
	"io"

	"portcullis/images/card"
)

// defaultSectorSize of a payload, in bytes.
const defaultSectorSize = 4096

// Options of Format. The zero value is what the Pi uses.
type Options struct {
	SectorSize    int       // of the payload: 512 to 4096 bytes; 0 is 4096
	PayloadOffset int64     // bytes, a multiple of 1 MiB; 0 is card.CryptHeader
	UUID          string    // "" makes a random one
	Label         string    // at most 47 bytes
	Random        io.Reader // salts; nil is crypto/rand, and only a test gives another
}

// Format makes an empty volume with this volume key on a device of size bytes and
// returns its header: both copies, one digest, no keyslot yet. Everything before
// the payload is overwritten with zeros first, so that no older header and no older
// keyslot survives. A cut on the way leaves the older volume untouched, none, or the
// new one.
func Format(d Device, size int64, o Options, volumeKey []byte) (*Header, error) {
	if o.SectorSize == 0 {
		o.SectorSize = defaultSectorSize
	}
	if o.PayloadOffset == 0 {
		o.PayloadOffset = card.CryptHeader
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	switch {
	case len(volumeKey) != VolumeKeySize:
		return nil, refuse(ReasonUsage, "a volume key of %d bytes", len(volumeKey))
	case o.PayloadOffset%(1<<20) != 0 || o.PayloadOffset < 1<<20 || o.PayloadOffset > MaxKeyslotsSize:
		return nil, refuse(ReasonUsage, "payload offset %d", o.PayloadOffset)
	case len(o.Label) > 47:
		return nil, refuse(ReasonUsage, "label of %d bytes", len(o.Label))
	case size <= o.PayloadOffset || (size-o.PayloadOffset)%int64(o.SectorSize) != 0:
		// dm-crypt takes whole sectors only.
		return nil, refuse(ReasonSize, "a device of %d bytes is not a header of %d and whole sectors of %d", size, o.PayloadOffset, o.SectorSize)
	}
	h, err := newHeader(size, o, volumeKey)
	if err != nil {
		return nil, err
	}
	// The old headers go first: a cut later on must not leave one that names
	// keyslots which are zeros already.
	if err := forget(d, size); err != nil {
		return nil, err
	}
	if err := fill(d, 0, o.PayloadOffset, zeros{}); err != nil {
		return nil, err
	}
	text, err := h.meta.encode()
	if err != nil {
		return nil, err
	}
	h.json = text
	return h, writeCopies(d, h.bin, text, false, o.Random)
}

// forget makes every good copy of a header unreadable, one after the other.
func forget(d Device, size int64) error {
	for range len(headerSizes) + 1 {
		primary, secondary, err := readCopies(d, size)
		if err != nil {
			return err
		}
		c := primary
		if c.state != CopyGood {
			c = secondary
		}
		if c.state != CopyGood {
			return nil
		}
		if err := fill(d, int64(c.bin.Offset), binarySize, zeros{}); err != nil {
			return err
		}
	}
	return nil
}

func newHeader(size int64, o Options, volumeKey []byte) (*Header, error) {
	h := &Header{Limits: DefaultLimits(), size: size}
	h.bin = binaryHeader{Version: 2, Size: HeaderSize, Sequence: 1}
	copy(h.bin.Algorithm[:], "sha256")
	copy(h.bin.Label[:], o.Label)
	if o.UUID == "" {
		var b [16]byte
		if _, err := io.ReadFull(o.Random, b[:]); err != nil {
			return nil, &Error{ReasonUsage, err}
		}
		b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4
		o.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	}
	if len(o.UUID) != 36 {
		return nil, refuse(ReasonUsage, "UUID %.40q", o.UUID)
	}
	copy(h.bin.UUID[:], o.UUID)
	dg := &digest{Type: "pbkdf2", Keyslots: []number{}, Segments: []number{0}, Hash: "sha256",
		Iterations: 1000, Salt: make([]byte, saltSize)}
	if _, err := io.ReadFull(o.Random, dg.Salt); err != nil {
		return nil, &Error{ReasonUsage, err}
	}
	var err error
	// The volume key is 512 random bits: nobody guesses it through its digest.
	if dg.Digest, err = stretch(dg.Hash, volumeKey, dg.Salt, dg.Iterations, 32); err != nil {
		return nil, err
	}
	h.meta = &metadata{
		keyslots: map[int]*keyslot{}, tokens: nil,
		segments: map[int]*segment{0: {Type: "crypt", Offset: number(o.PayloadOffset), Size: "dynamic", Encryption: cipherName, SectorSize: o.SectorSize}},
		digests:  map[int]*digest{0: dg},
		config:   config{JSONSize: HeaderSize - binarySize, KeyslotsSize: number(o.PayloadOffset - 2*HeaderSize)},
	}
	return h, h.meta.check(HeaderSize)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// fill writes n bytes of content at offset and returns when they are on the device.
func fill(d Device, offset, n int64, content io.Reader) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		if _, err := io.ReadFull(content, b); err != nil {
			return &Error{ReasonDevice, err}
		}
		if _, err := d.WriteAt(b, offset); err != nil {
			return &Error{ReasonDevice, err}
		}
		offset, n = offset+int64(len(b)), n-int64(len(b))
	}
	if err := d.Sync(); err != nil {
		return &Error{ReasonDevice, err}
	}
	return nil
}
