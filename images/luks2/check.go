package luks2

import (
	"encoding/json"
	"math"
	"sort"
	"strconv"
)

// check holds the metadata to the rules of the format before anything is allocated
// or read by them. headerSize is that of one copy.
func (m *metadata) check(headerSize int64) error {
	if int64(m.config.JSONSize) != headerSize-binarySize {
		return refuse(ReasonMetadata, "json_size is %d in a header of %d bytes", m.config.JSONSize, headerSize)
	}
	if s := m.config.KeyslotsSize; s%areaAlign != 0 || s > MaxKeyslotsSize {
		return refuse(ReasonMetadata, "keyslots_size %d", s)
	}
	begin := 2 * headerSize
	end := begin + int64(m.config.KeyslotsSize)
	if err := m.checkSegments(end); err != nil {
		return err
	}
	for n, k := range m.keyslots {
		if err := k.check(begin, end); err != nil {
			return prefix(err, "keyslot", n)
		}
	}
	if err := m.checkOverlap(); err != nil {
		return err
	}
	if err := m.checkDigests(); err != nil {
		return err
	}
	for n, t := range m.tokens {
		if _, err := m.checkToken(t); err != nil {
			return prefix(err, "token", n)
		}
	}
	return nil
}

func prefix(err error, what string, n int) error {
	e, ok := err.(*Error)
	if !ok {
		return err
	}
	return refuse(e.Reason, "%s %d: %w", what, n, e.Err)
}

func (m *metadata) checkSegments(keyslotsEnd int64) error {
	s, ok := m.segments[0]
	if !ok || len(m.segments) != 1 {
		return refuse(ReasonUnsupported, "%d segments instead of segment 0 alone", len(m.segments))
	}
	switch {
	case s.Encryption != cipherName:
		return refuse(ReasonUnsupported, "segment encryption %.40q is not %s", s.Encryption, cipherName)
	case len(s.Flags) != 0:
		return refuse(ReasonUnsupported, "segment flag %.40q", s.Flags[0])
	case s.SectorSize != 512 && s.SectorSize != 1024 && s.SectorSize != 2048 && s.SectorSize != 4096:
		return refuse(ReasonMetadata, "sector size %d", s.SectorSize)
	case int64(s.Offset) < keyslotsEnd:
		return refuse(ReasonMetadata, "the segment begins at %d, inside the header that ends at %d", s.Offset, keyslotsEnd)
	case int64(s.Offset)%int64(s.SectorSize) != 0 || int64(s.Offset) > math.MaxInt64/2:
		return refuse(ReasonMetadata, "segment offset %d", s.Offset)
	}
	if _, dynamic, ok := s.size(); !ok && !dynamic {
		return refuse(ReasonMetadata, "segment size %.40q", s.Size)
	}
	return nil
}

// size returns the fixed size of the segment in bytes, or dynamic.
func (s *segment) size() (n int64, dynamic, ok bool) {
	if s.Size == "dynamic" {
		return 0, true, false
	}
	n, err := strconv.ParseInt(s.Size, 10, 64)
	ok = err == nil && n > 0 && n <= math.MaxInt64/2 && n%int64(s.SectorSize) == 0 && strconv.FormatInt(n, 10) == s.Size
	return n, false, ok
}

func (k *keyslot) check(begin, end int64) error {
	switch {
	case k.KeySize != 32 && k.KeySize != 64:
		return refuse(ReasonUnsupported, "key size %d is not 32 or 64", k.KeySize)
	case k.AF.Type != "luks1" || k.AF.Stripes != stripes:
		return refuse(ReasonMetadata, "anti-forensic splitter %.20q with %d stripes", k.AF.Type, k.AF.Stripes)
	case hashes[k.AF.Hash] == nil:
		return refuse(ReasonUnsupported, "anti-forensic hash %.40q", k.AF.Hash)
	case k.Area.Type != "raw":
		return refuse(ReasonUnsupported, "area of type %.40q", k.Area.Type)
	case k.Area.Encryption != cipherName || k.Area.KeySize != 32 && k.Area.KeySize != 64:
		return refuse(ReasonUnsupported, "area encryption %.40q with a key of %d bytes", k.Area.Encryption, k.Area.KeySize)
	case k.Priority != nil && (*k.Priority < 0 || *k.Priority > 2):
		return refuse(ReasonMetadata, "priority %d", *k.Priority)
	}
	offset, size := int64(k.Area.Offset), int64(k.Area.Size)
	if offset%areaAlign != 0 || size%ivSector != 0 || offset < begin || size > end-begin || offset > end-size {
		return refuse(ReasonMetadata, "area of %d bytes at %d is not inside %d to %d", size, offset, begin, end)
	}
	if size < int64(k.KeySize)*stripes {
		return refuse(ReasonMetadata, "area of %d bytes is too small for its key", size)
	}
	return k.KDF.check()
}

func (m *metadata) checkOverlap() error {
	slots := sorted(m.keyslots)
	sort.Slice(slots, func(i, j int) bool { return m.keyslots[slots[i]].Area.Offset < m.keyslots[slots[j]].Area.Offset })
	for i := 1; i < len(slots); i++ {
		before := m.keyslots[slots[i-1]].Area
		if before.Offset+before.Size > m.keyslots[slots[i]].Area.Offset {
			return refuse(ReasonMetadata, "the areas of keyslots %d and %d overlap", slots[i-1], slots[i])
		}
	}
	return nil
}

// checkDigests: every keyslot has one digest, and segment 0 has exactly one, so that
// there is one volume key and no doubt which.
func (m *metadata) checkDigests() error {
	owner := make(map[number]int)
	payload := 0
	for n, d := range m.digests {
		hash := hashes[d.Hash]
		switch {
		case hash == nil:
			return refuse(ReasonUnsupported, "digest %d: hash %.40q", n, d.Hash)
		case len(d.Digest) != hash().Size():
			return refuse(ReasonMetadata, "digest %d has %d bytes", n, len(d.Digest))
		case len(d.Salt) < minSalt || len(d.Salt) > maxSalt:
			return refuse(ReasonMetadata, "digest %d has a salt of %d bytes", n, len(d.Salt))
		case d.Iterations < 1 || d.Iterations > maxIterations:
			return refuse(ReasonMetadata, "digest %d asks for %d iterations", n, d.Iterations)
		}
		for _, k := range d.Keyslots {
			if _, ok := m.keyslots[int(k)]; !ok || k >= MaxSlots {
				return refuse(ReasonMetadata, "digest %d names keyslot %d, which is not there", n, k)
			}
			if _, twice := owner[k]; twice {
				return refuse(ReasonMetadata, "keyslot %d is named by digests twice", k)
			}
			owner[k] = n
		}
		for _, s := range d.Segments {
			if s != 0 {
				return refuse(ReasonMetadata, "digest %d names segment %d, which is not there", n, s)
			}
			payload++
		}
	}
	if payload != 1 {
		return refuse(ReasonMetadata, "%d digests for the segment instead of 1", payload)
	}
	if len(owner) != len(m.keyslots) {
		return refuse(ReasonMetadata, "a keyslot has no digest")
	}
	return nil
}

// checkToken reads what every token has: a type and the keyslots it is for.
func (m *metadata) checkToken(raw json.RawMessage) (Token, error) {
	var t struct {
		Type     *string   `json:"type"`
		Keyslots *[]number `json:"keyslots"`
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(raw, &names); err != nil {
		return Token{}, &Error{ReasonMetadata, err}
	}
	if err := json.Unmarshal(raw, &t); err != nil {
		return Token{}, &Error{ReasonMetadata, err}
	}
	// Unmarshal also takes other spellings of a name; with the exact one there as
	// well, it is not clear which of them it took.
	for name := range names {
		if name != "type" && name != "keyslots" && (equalFold(name, "type") || equalFold(name, "keyslots")) {
			return Token{}, refuse(ReasonMetadata, "a field is called %.20q", name)
		}
	}
	if t.Type == nil || *t.Type == "" || t.Keyslots == nil {
		return Token{}, refuse(ReasonMetadata, "type or keyslots are missing")
	}
	out := Token{Type: *t.Type, JSON: raw}
	for _, k := range *t.Keyslots {
		if _, ok := m.keyslots[int(k)]; !ok || k >= MaxSlots {
			return Token{}, refuse(ReasonMetadata, "keyslot %d is not there", k)
		}
		out.Slots = append(out.Slots, int(k))
	}
	return out, nil
}
