package luks2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
)

// metadata is the JSON part of the header. Numbers that may pass 2^53 are texts in
// the format; the structs keep them so, and check.go makes numbers of them.
type metadata struct {
	keyslots map[int]*keyslot
	tokens   map[int]json.RawMessage // as found, byte for byte
	segments map[int]*segment
	digests  map[int]*digest
	config   config
}

type keyslot struct {
	Type     string `json:"type"`
	KeySize  int    `json:"key_size"`
	AF       af     `json:"af"`
	Area     area   `json:"area"`
	KDF      kdf    `json:"kdf"`
	Priority *int   `json:"priority,omitempty"` // 0 ignore, 1 normal, 2 prefer
}

type af struct {
	Type    string `json:"type"`
	Stripes int    `json:"stripes"`
	Hash    string `json:"hash"`
}

type area struct {
	Type       string `json:"type"`
	Offset     number `json:"offset"`
	Size       number `json:"size"`
	Encryption string `json:"encryption"`
	KeySize    int    `json:"key_size"`
}

type kdf struct {
	Type       string `json:"type"`
	Hash       string `json:"hash,omitempty"`
	Iterations int64  `json:"iterations,omitempty"`
	Time       int64  `json:"time,omitempty"`
	Memory     int64  `json:"memory,omitempty"` // KiB
	CPUs       int64  `json:"cpus,omitempty"`
	Salt       []byte `json:"salt"`
}

type segment struct {
	Type       string   `json:"type"`
	Offset     number   `json:"offset"`
	Size       string   `json:"size"` // bytes, or "dynamic": to the end of the device
	IVTweak    number   `json:"iv_tweak"`
	Encryption string   `json:"encryption"`
	SectorSize int      `json:"sector_size"`
	Flags      []string `json:"flags,omitempty"`
}

type digest struct {
	Type       string   `json:"type"`
	Keyslots   []number `json:"keyslots"`
	Segments   []number `json:"segments"`
	Hash       string   `json:"hash"`
	Iterations int64    `json:"iterations"`
	Salt       []byte   `json:"salt"`
	Digest     []byte   `json:"digest"`
}

type config struct {
	JSONSize     number       `json:"json_size"`
	KeyslotsSize number       `json:"keyslots_size"`
	Flags        []string     `json:"flags,omitempty"`
	Requirements requirements `json:"requirements,omitempty"`
}

// requirements are conditions that a program must understand before it opens the
// volume. Nothing is understood here, so they are only ever read.
type requirements []string

// UnmarshalJSON accepts the object that cryptsetup writes, and the plain array of
// the specification.
func (r *requirements) UnmarshalJSON(b []byte) error {
	var list []string
	if json.Unmarshal(b, &list) == nil {
		*r = list
		return nil
	}
	var object struct {
		Mandatory []string `json:"mandatory"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&object); err != nil {
		return fmt.Errorf("requirements: %w", err)
	}
	*r = object.Mandatory
	return nil
}

// number is a decimal number in a JSON string, as the format writes 64-bit values.
type number int64

// MarshalJSON writes the decimal string.
func (n number) MarshalJSON() ([]byte, error) {
	return []byte(`"` + strconv.FormatInt(int64(n), 10) + `"`), nil
}

// UnmarshalJSON accepts the canonical decimal string of 0 to 2^63-1 only.
func (n *number) UnmarshalJSON(b []byte) error {
	if len(b) < 3 || len(b) > 21 || b[0] != '"' || b[len(b)-1] != '"' {
		return fmt.Errorf("%.40s is not a decimal number in a string", b)
	}
	v, err := strconv.ParseInt(string(b[1:len(b)-1]), 10, 64)
	if err != nil || v < 0 || strconv.FormatInt(v, 10) != string(b[1:len(b)-1]) {
		return fmt.Errorf("%.40s is not a decimal number in a string", b)
	}
	*n = number(v)
	return nil
}

// encode writes the JSON without spaces, the way cryptsetup does, objects sorted by
// number. Tokens are written as they are.
func (m *metadata) encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`{"keyslots":`)
	if err := encodeObjects(&b, m.keyslots); err != nil {
		return nil, err
	}
	b.WriteString(`,"tokens":`)
	if err := encodeObjects(&b, m.tokens); err != nil {
		return nil, err
	}
	b.WriteString(`,"segments":`)
	if err := encodeObjects(&b, m.segments); err != nil {
		return nil, err
	}
	b.WriteString(`,"digests":`)
	if err := encodeObjects(&b, m.digests); err != nil {
		return nil, err
	}
	b.WriteString(`,"config":`)
	if err := encodeValue(&b, m.config); err != nil {
		return nil, err
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func encodeObjects[T any](b *bytes.Buffer, objects map[int]T) error {
	b.WriteByte('{')
	for i, n := range sorted(objects) {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, `"%d":`, n)
		if err := encodeValue(b, objects[n]); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

// encodeValue is json.Marshal that leaves raw messages and the characters <, > and
// & alone: a token must not change because another one was added.
func encodeValue(b *bytes.Buffer, v any) error {
	if raw, ok := v.(json.RawMessage); ok {
		b.Write(raw)
		return nil
	}
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return &Error{ReasonUsage, err}
	}
	b.Truncate(b.Len() - 1) // Encode's line feed
	return nil
}

func sorted[T any](objects map[int]T) []int {
	keys := make([]int, 0, len(objects))
	for n := range objects {
		keys = append(keys, n)
	}
	sort.Ints(keys)
	return keys
}
