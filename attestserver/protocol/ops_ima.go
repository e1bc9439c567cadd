package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Limits of one answer of op ima.
const (
	MaxMeasurements   = 2048
	MaxMeasuredImages = 8 // that are named of one entry
)

// Measurement is one entry of the kernel's list: a file that was executed,
// mapped as code or loaded.
type Measurement struct {
	Digest string `json:"digest"` // hex, SHA-256 of the content; zeros where the file changed while it was read
	Path   string `json:"path"`   // as the kernel had it at that moment
	// Images of containers that have a program of this content: SHA-256 of their
	// configurations, hex. They are the agent's words, not the kernel's list's.
	Images []string `json:"images,omitempty"`
}

// ImaStart is the head of the chain before the first entry.
var ImaStart = sha256.Sum256([]byte("portcullis-measurements-v1"))

// ImaNext is the chain's head after an entry.
func ImaNext(head [32]byte, m Measurement) [32]byte {
	h := sha256.New()
	h.Write(head[:])
	writeField(h, []byte(m.Digest))
	writeField(h, []byte(m.Path))
	return Sum(h)
}

// ErrMeasurement is an entry of the kernel's list that says something else than which
// content was measured.
var ErrMeasurement = errors.New("measurement of an unknown form")

// ParseMeasurement reads the data of an entry with one of the templates that begin with
// digest and path, ima-ng and ima-sig: "sha256:" NUL digest, then path NUL, each with its length
// before it, little-endian (Documentation/security/IMA-templates.rst). Agent and
// gateway read the same bytes and must come to the same chain.
func ParseMeasurement(template string, data []byte) (m Measurement, err error) {
	if template != "ima-ng" && template != "ima-sig" {
		return m, fmt.Errorf("%w: template %.16q", ErrMeasurement, template)
	}
	var fields [2][]byte
	for i := range fields {
		if len(data) < 4 || uint64(binary.LittleEndian.Uint32(data)) > uint64(len(data)-4) {
			return m, fmt.Errorf("%w: cut short", ErrMeasurement)
		}
		n := binary.LittleEndian.Uint32(data)
		fields[i], data = data[4:4+n], data[4+n:]
	}
	algorithm, digest, ok := bytes.Cut(fields[0], []byte{0})
	if !ok || string(algorithm) != "sha256:" || len(digest) != sha256.Size {
		return m, fmt.Errorf("%w: digest of kind %.16q", ErrMeasurement, algorithm)
	}
	return Measurement{Digest: hex.EncodeToString(digest), Path: Clean(strings.TrimRight(string(fields[1]), "\x00"))}, nil
}

// ImaParams asks for the entries after the first From.
type ImaParams struct {
	From uint64 `json:"from"`
}

// Check has nothing to refuse.
func (*ImaParams) Check() error { return nil }

// ImaData is the answer of op ima.
type ImaData struct {
	From       uint64        `json:"from"`
	HeadFrom   string        `json:"head_from"` // hex, the chain's head after From entries
	Entries    []Measurement `json:"entries"`
	Head       string        `json:"head"`       // hex, after the last of Entries
	Total      uint64        `json:"total"`      // entries there are
	Violations uint64        `json:"violations"` // files that were written while they were measured
}

// Check bounds the lists and strings.
func (d *ImaData) Check() error {
	if err := atMost("measurements", len(d.Entries), MaxMeasurements); err != nil {
		return err
	}
	if d.From > d.Total || d.From+uint64(len(d.Entries)) > d.Total {
		return errors.New("more measurements than there are")
	}
	for _, e := range d.Entries {
		if err := atMost("images", len(e.Images), MaxMeasuredImages); err != nil {
			return err
		}
		if err := short("measurement", append([]string{e.Digest, e.Path}, e.Images...)...); err != nil {
			return err
		}
	}
	for _, s := range []string{d.Head, d.HeadFrom} {
		if b, err := hex.DecodeString(s); err != nil || len(b) != 32 {
			return errors.New("a head that is no SHA-256")
		}
	}
	return nil
}
