package ktextmask

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// The file: magic, u16 version, u32 length of a JSON header, the header, then
// for each class its ranges as pairs of uvarints (gap since the last range's
// end, length), for jump labels with a varint (target minus start) behind, then those of
// what is patched at boot and of the classes of sites that settle then, then the stock
// digests of 32 bytes. Integers are little-endian.
var magic = []byte("PCKTMASK")

const version = 3

type header struct {
	Release  string  `json:"release"`
	Notes    string  `json:"notes_sha256"`
	TextBase uint64  `json:"text_base"`
	TextSize uint64  `json:"text_size"`
	Granule  int     `json:"granule"`
	Classes  []Count `json:"classes"`
	AtBoot   []Count `json:"at_boot"` // for the reader's eye: classes overlap
	Boot     int     `json:"boot_ranges"`
	// Of kernels that carry their configuration.
	Once    []Count  `json:"once,omitempty"`
	Without []string `json:"without,omitempty"`
}

// Encode writes the mask file. Equal masks give equal bytes.
func (m *Mask) Encode() ([]byte, error) {
	h := header{Release: m.Release, Notes: hex.EncodeToString(m.Notes[:]), TextBase: m.TextBase, TextSize: m.TextSize, Granule: Granule,
		AtBoot: m.AtBoot, Boot: len(m.Boot), Without: m.Without}
	var body []byte
	for _, c := range m.Classes {
		if c.Name == JumpLabel && len(c.Targets) != len(c.Ranges) {
			return nil, fmt.Errorf("ktext mask: %d jump labels with %d targets", len(c.Ranges), len(c.Targets))
		}
		h.Classes = append(h.Classes, c.count())
		body = c.encode(body)
	}
	body = Class{Ranges: m.Boot}.encode(body)
	for _, c := range m.Once {
		h.Once = append(h.Once, c.count())
		body = c.encode(body)
	}
	for _, d := range m.Stock {
		body = append(body, d[:]...)
	}
	js, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("ktext mask: %w", err)
	}
	out := append([]byte(nil), magic...)
	out = binary.LittleEndian.AppendUint16(out, version)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(js)))
	out = append(out, js...)
	return append(out, body...), nil
}

func (c Class) count() Count {
	n := Count{Name: c.Name, Ranges: len(c.Ranges)}
	for _, r := range c.Ranges {
		n.Bytes += int(r.Len)
	}
	return n
}

func (c Class) encode(body []byte) []byte {
	at := uint32(0)
	for i, r := range c.Ranges {
		body = binary.AppendUvarint(body, uint64(r.Off-at))
		body = binary.AppendUvarint(body, uint64(r.Len))
		if c.Name == JumpLabel {
			body = binary.AppendVarint(body, int64(c.Targets[i])-int64(r.Off))
		}
		at = r.Off + r.Len
	}
	return body
}

// Decode reads a mask file and refuses one that is not exactly what Encode
// writes: unsorted or overlapping ranges, ranges outside of the text, missing
// or surplus bytes.
func Decode(file []byte) (*Mask, error) {
	h, body, err := decodeHeader(file)
	if err != nil {
		return nil, fmt.Errorf("ktext mask: %w", err)
	}
	m := &Mask{Release: h.Release, TextBase: h.TextBase, TextSize: h.TextSize, AtBoot: h.AtBoot, Without: h.Without}
	if err := checkWithout(m.Without); err != nil {
		return nil, fmt.Errorf("ktext mask: %w", err)
	}
	if n, err := hex.Decode(m.Notes[:], []byte(h.Notes)); err != nil || n != 32 {
		return nil, errors.New("ktext mask: notes_sha256 is no digest")
	}
	for _, hc := range h.Classes {
		c := Class{Name: hc.Name}
		if body, err = c.decode(body, hc.Ranges, h.TextSize); err != nil {
			return nil, fmt.Errorf("ktext mask: class %s: %w", hc.Name, err)
		}
		m.Classes = append(m.Classes, c)
	}
	var boot Class
	if body, err = boot.decode(body, h.Boot, h.TextSize); err != nil {
		return nil, fmt.Errorf("ktext mask: patched at boot: %w", err)
	}
	m.Boot = boot.Ranges
	for _, hc := range h.Once {
		c := Class{Name: hc.Name}
		if body, err = c.decode(body, hc.Ranges, h.TextSize); err != nil {
			return nil, fmt.Errorf("ktext mask: class %s: %w", hc.Name, err)
		}
		m.Once = append(m.Once, c)
	}
	pieces := int((h.TextSize + Granule - 1) / Granule)
	if len(body) != 32*pieces {
		return nil, fmt.Errorf("ktext mask: %d bytes of digests, want %d", len(body), 32*pieces)
	}
	m.Stock = make([][32]byte, pieces)
	for i := range m.Stock {
		m.Stock[i] = [32]byte(body[32*i:])
	}
	return m, nil
}

func decodeHeader(file []byte) (h header, body []byte, err error) {
	if len(file) < len(magic)+6 || !bytes.HasPrefix(file, magic) {
		return h, nil, errors.New("not a mask file")
	}
	if v := binary.LittleEndian.Uint16(file[len(magic):]); v != version {
		return h, nil, fmt.Errorf("version %d, want %d", v, version)
	}
	size := uint64(binary.LittleEndian.Uint32(file[len(magic)+2:]))
	body = file[len(magic)+6:]
	if size > maxHeaderSize || size > uint64(len(body)) {
		return h, nil, fmt.Errorf("header of %d bytes", size)
	}
	dec := json.NewDecoder(bytes.NewReader(body[:size]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h); err != nil {
		return h, nil, fmt.Errorf("header: %w", err)
	}
	switch {
	case dec.More():
		return h, nil, errors.New("header: surplus bytes")
	case h.TextSize == 0 || h.TextSize > maxTextSize:
		return h, nil, fmt.Errorf("text of %d bytes", h.TextSize)
	case h.Granule != Granule:
		return h, nil, fmt.Errorf("granule %d, want %d", h.Granule, Granule)
	case len(h.Classes)+len(h.AtBoot)+len(h.Once) > maxClasses:
		return h, nil, fmt.Errorf("%d classes", len(h.Classes)+len(h.AtBoot)+len(h.Once))
	}
	return h, body[size:], nil
}

func (c *Class) decode(body []byte, ranges int, size uint64) ([]byte, error) {
	// Two bytes are the least that a range takes.
	if ranges < 0 || ranges > maxRanges || 2*ranges > len(body) {
		return nil, fmt.Errorf("%d ranges in %d bytes", ranges, len(body))
	}
	c.Ranges = make([]Range, 0, ranges)
	at := uint64(0)
	for i := range ranges {
		gap, n := binary.Uvarint(body)
		if n <= 0 {
			return nil, errors.New("cut short")
		}
		length, n2 := binary.Uvarint(body[n:])
		if n2 <= 0 {
			return nil, errors.New("cut short")
		}
		body = body[n+n2:]
		if gap > size || length == 0 || length > size || at+gap+length > size {
			return nil, fmt.Errorf("range %d is empty or outside of the text", i)
		}
		c.Ranges = append(c.Ranges, Range{uint32(at + gap), uint32(length)})
		if c.Name == JumpLabel {
			delta, n := binary.Varint(body)
			target := int64(at+gap) + delta
			if n <= 0 || target < 0 || target >= int64(size) {
				return nil, fmt.Errorf("jump label %d goes out of the text", i)
			}
			body = body[n:]
			c.Targets = append(c.Targets, uint32(target))
		}
		at += gap + length
	}
	return body, nil
}
