package blockmap

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"

	"portcullis/images/manifest"
)

// Digest is a SHA-256; as text it is lower-case hex.
type Digest [32]byte

// String returns the digest in hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(b []byte) error {
	if n, err := hex.Decode(d[:], b[:min(len(b), 64)]); err != nil || n != 32 || len(b) != 64 {
		return refuse(ReasonMalformed, "%.70q is no SHA-256", b)
	}
	return nil
}

// Range is a piece of the image that holds data.
type Range struct {
	Start  int64  `json:"start"`  // bytes, a multiple of Block
	Length int64  `json:"length"` // bytes, 1 to MaxRange; a multiple of Block but at the end of the image
	SHA256 Digest `json:"sha256"`
}

// End is the first byte behind the range.
func (r Range) End() int64 { return r.Start + r.Length }

// Map describes an image. What Open and Pack return is valid.
type Map struct {
	Schema     string     `json:"schema"`
	Title      string     `json:"title"` // one line for people: what this image is
	Size       int64      `json:"size"`  // of the image in bytes, a multiple of 512
	Ranges     []Range    `json:"ranges"`
	Compressed Compressed `json:"compressed"`
}

// Compressed describes the file that the image is shipped as.
type Compressed struct {
	Size   int64  `json:"size"` // bytes
	SHA256 Digest `json:"sha256"`
}

// Data is the number of bytes in all ranges.
func (m *Map) Data() int64 {
	var n int64
	for _, r := range m.Ranges {
		n += r.Length
	}
	return n
}

// Gap is a piece of the image between its ranges: zeros.
type Gap struct{ Start, Length int64 }

// Gaps returns everything that no range covers, in order, none longer than MaxRange.
func (m *Map) Gaps() []Gap {
	var out []Gap
	at := int64(0)
	until := func(end int64) {
		for at < end {
			n := min(end-at, MaxRange-at%MaxRange)
			out = append(out, Gap{at, n})
			at += n
		}
	}
	for _, r := range m.Ranges {
		until(r.Start)
		at = r.End()
	}
	until(m.Size)
	return out
}

// Digest names the image: the SHA-256 of the encoded map.
func (m *Map) Digest() (Digest, error) {
	b, err := m.Encode()
	return sha256.Sum256(b), err
}

// Encode returns the one encoding of a valid map.
func (m *Map) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Decode reads the encoding of Encode and nothing else.
func Decode(b []byte) (*Map, error) {
	if len(b) > MaxEncoded {
		return nil, refuse(ReasonMalformed, "%d bytes are more than %d", len(b), MaxEncoded)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var m Map
	if err := d.Decode(&m); err != nil {
		return nil, refuse(ReasonMalformed, "not readable: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, refuse(ReasonMalformed, "something follows the map")
	}
	again, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, refuse(ReasonMalformed, "not in its canonical encoding")
	}
	return &m, nil
}

func (m *Map) check() error {
	switch {
	case m.Schema != Schema:
		return refuse(ReasonMalformed, "schema %.40q, only %q is known", m.Schema, Schema)
	case m.Size < Block || m.Size > MaxSize || m.Size%512 != 0:
		return refuse(ReasonMalformed, "an image of %d bytes", m.Size)
	case m.Compressed.Size < 1 || m.Compressed.Size > MaxSize+MaxSize/8:
		return refuse(ReasonMalformed, "%d compressed bytes", m.Compressed.Size)
	case len(m.Ranges) == 0:
		return refuse(ReasonMalformed, "an image without data")
	case len(m.Title) == 0 || len(m.Title) > MaxTitle:
		return refuse(ReasonMalformed, "a title of %d bytes", len(m.Title))
	}
	for _, c := range []byte(m.Title) {
		if c < ' ' || c > '~' { // it is printed on terminals
			return refuse(ReasonMalformed, "the title is not plain text")
		}
	}
	end := int64(0)
	for i, r := range m.Ranges {
		switch {
		case r.Start < end || r.Start%Block != 0 || r.Start >= m.Size:
			return refuse(ReasonMalformed, "range %d begins at %d, the one before ends at %d", i, r.Start, end)
		case r.Length < 1 || r.Length > MaxRange || r.Length > m.Size-r.Start || r.Start/MaxRange != (r.End()-1)/MaxRange:
			return refuse(ReasonMalformed, "range %d at %d has %d bytes", i, r.Start, r.Length)
		case r.Length%Block != 0 && r.End() != m.Size:
			return refuse(ReasonMalformed, "range %d ends within a block", i)
		}
		end = r.End()
	}
	return nil
}

// Sign returns the map in a DSSE envelope with one signature for each signer.
func (m *Map) Sign(signers ...crypto.Signer) ([]byte, error) {
	b, err := m.Encode()
	if err != nil {
		return nil, err
	}
	return manifest.SignPayload(PayloadType, b, signers...)
}

// Open verifies a signed map against trust and returns it.
func Open(data []byte, trust manifest.Trust) (*Map, error) {
	b, err := manifest.OpenPayload(PayloadType, data, trust)
	if err != nil {
		return nil, err
	}
	return Decode(b)
}

// Peek returns a signed map without asking who signed it, and the keys that it
// names. It is for those who have no key and say so.
func Peek(data []byte) (*Map, []string, error) {
	b, keys, err := manifest.PeekPayload(PayloadType, data)
	if err != nil {
		return nil, nil, err
	}
	m, err := Decode(b)
	return m, keys, err
}
