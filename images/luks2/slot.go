package luks2

import (
	"crypto/rand"
	"crypto/subtle"
	"io"
	"sort"
)

// Slot describes a keyslot.
type Slot struct {
	ID       int
	KDF      string // pbkdf2, argon2i, argon2id
	Memory   int64  // KiB, argon2 only
	Priority int    // 0 is skipped by Unlock unless it is named, 2 goes first
}

// Slots lists the keyslots of the volume key, in the order in which Unlock tries
// them: by priority, then by what they cost, then by number.
func (h *Header) Slots() []Slot {
	var out []Slot
	for _, n := range sorted(h.meta.keyslots) {
		if d := h.digestOf(n); d == nil || len(d.Segments) == 0 {
			continue
		}
		k := h.meta.keyslots[n]
		s := Slot{ID: n, KDF: k.KDF.Type, Memory: k.KDF.Memory, Priority: 1}
		if k.Priority != nil {
			s.Priority = *k.Priority
		}
		out = append(out, s)
	}
	sort.SliceStable(out, func(i, j int) bool {
		if out[i].Priority != out[j].Priority {
			return out[i].Priority > out[j].Priority
		}
		return out[i].Memory < out[j].Memory
	})
	return out
}

func (h *Header) digestOf(slot int) *digest {
	for _, d := range h.meta.digests {
		for _, k := range d.Keyslots {
			if int(k) == slot {
				return d
			}
		}
	}
	return nil
}

// AddSlot writes the volume key for passphrase into a free area and adds a keyslot
// with the first free number to the header, which is not yet stored: until Write
// nothing refers to the area. It makes sure first that volumeKey is this volume's.
func (h *Header) AddSlot(d Device, volumeKey, passphrase []byte, k KDF) (int, error) {
	if len(passphrase) == 0 || len(passphrase) > MaxPassphrase {
		return 0, refuse(ReasonUsage, "a passphrase of %d bytes", len(passphrase))
	}
	dg, err := h.verify(volumeKey)
	if err != nil {
		return 0, err
	}
	if _, _, err := h.current(d); err != nil {
		return 0, err
	}
	id := free(h.meta.keyslots)
	offset, size, room := h.freeArea(len(volumeKey))
	if id < 0 || !room {
		return 0, refuse(ReasonFull, "no room for another keyslot")
	}
	slot := &keyslot{
		Type: "luks2", KeySize: len(volumeKey), AF: af{Type: "luks1", Stripes: stripes, Hash: "sha256"},
		Area: area{Type: "raw", Offset: number(offset), Size: number(size), Encryption: cipherName, KeySize: 64},
		KDF:  kdf{Type: k.Type, Iterations: int64(k.Iterations), Time: int64(k.Time), Memory: int64(k.Memory), CPUs: int64(k.Lanes), Salt: make([]byte, saltSize)},
	}
	if k.Type == "pbkdf2" {
		slot.KDF.Hash = "sha256"
	}
	if _, err := rand.Read(slot.KDF.Salt); err != nil {
		return 0, &Error{ReasonUsage, err}
	}
	if err := slot.KDF.check(); err != nil {
		return 0, &Error{ReasonUsage, err}
	}
	if err := slot.KDF.affordable(h.Limits); err != nil {
		return 0, err
	}
	if err := slot.store(d, volumeKey, passphrase); err != nil {
		return 0, err
	}
	h.meta.keyslots[id] = slot
	dg.Keyslots = append(dg.Keyslots, number(id))
	return id, nil
}

func (k *keyslot) store(d Device, volumeKey, passphrase []byte) error {
	key, err := k.KDF.derive(passphrase, k.Area.KeySize)
	if err != nil {
		return err
	}
	defer clear(key)
	material, err := split(volumeKey, hashes[k.AF.Hash], rand.Reader)
	if err != nil {
		return err
	}
	defer clear(material)
	if err := cryptArea(material, key, false); err != nil {
		return err
	}
	return writeSync(d, material, int64(k.Area.Offset))
}

// freeArea finds the first gap for a key of n bytes.
func (h *Header) freeArea(n int) (offset, size int64, ok bool) {
	size = (int64(n)*stripes + areaAlign - 1) / areaAlign * areaAlign
	begin := 2 * int64(h.bin.Size)
	end := begin + int64(h.meta.config.KeyslotsSize)
	var areas []area
	for _, k := range h.meta.keyslots {
		areas = append(areas, k.Area)
	}
	sort.Slice(areas, func(i, j int) bool { return areas[i].Offset < areas[j].Offset })
	offset = begin
	for _, a := range areas {
		if offset+size <= int64(a.Offset) {
			break
		}
		offset = (int64(a.Offset+a.Size) + areaAlign - 1) / areaAlign * areaAlign
	}
	return offset, size, offset+size <= end
}

func free[T any](objects map[int]T) int {
	for n := range MaxSlots {
		if _, used := objects[n]; !used {
			return n
		}
	}
	return -1
}

// KillSlot overwrites a keyslot's area with random bytes, on the device at once, and
// takes the slot out of the header and of every token; Write stores that. A medium
// that remaps blocks, as SD cards do, may keep the old bytes out of reach of
// software. The last keyslot of the volume is not killed: Erase is for that.
func (h *Header) KillSlot(d Device, id int) error {
	k, ok := h.meta.keyslots[id]
	if !ok {
		return refuse(ReasonNoSlot, "there is no keyslot %d", id)
	}
	if slots := h.Slots(); len(slots) == 1 && slots[0].ID == id {
		return refuse(ReasonUsage, "keyslot %d is the last one", id)
	}
	if _, _, err := h.current(d); err != nil {
		return err
	}
	tokens, err := h.tokensWithout(id)
	if err != nil {
		return err
	}
	if err := fill(d, int64(k.Area.Offset), int64(k.Area.Size), rand.Reader); err != nil {
		return err
	}
	h.meta.tokens = tokens
	delete(h.meta.keyslots, id)
	for _, dg := range h.meta.digests {
		for i, n := range dg.Keyslots {
			if int(n) == id {
				dg.Keyslots = append(dg.Keyslots[:i:i], dg.Keyslots[i+1:]...)
				break
			}
		}
	}
	return nil
}

// Unlock returns the volume key and the keyslot that passphrase opens: of the slots
// named, or of all in the order of Slots. The key is proven against the digest.
// The caller wipes it. A slot over the Limits is refused with ReasonCost, unless
// another one opens.
func (h *Header) Unlock(r io.ReaderAt, passphrase []byte, slots ...int) (volumeKey []byte, slot int, err error) {
	if len(passphrase) == 0 || len(passphrase) > MaxPassphrase {
		return nil, 0, refuse(ReasonPassphrase, "a passphrase of %d bytes", len(passphrase))
	}
	if len(slots) == 0 {
		for _, s := range h.Slots() {
			if s.Priority > 0 {
				slots = append(slots, s.ID)
			}
		}
	}
	if len(slots) == 0 {
		return nil, 0, refuse(ReasonNoSlot, "the volume has no keyslot")
	}
	var cost error
	for _, id := range slots {
		key, err := h.open(r, passphrase, id)
		switch ReasonOf(err) {
		case "":
			return key, id, nil
		case ReasonCost:
			cost = err
		case ReasonPassphrase:
		default:
			return nil, 0, err
		}
	}
	if cost != nil {
		return nil, 0, cost
	}
	return nil, 0, refuse(ReasonPassphrase, "no keyslot opens with this passphrase")
}

func (h *Header) open(r io.ReaderAt, passphrase []byte, id int) ([]byte, error) {
	k, ok := h.meta.keyslots[id]
	if !ok {
		return nil, refuse(ReasonNoSlot, "there is no keyslot %d", id)
	}
	if err := k.KDF.affordable(h.Limits); err != nil {
		return nil, prefix(err, "keyslot", id)
	}
	material := make([]byte, k.KeySize*stripes)
	defer clear(material)
	if _, err := r.ReadAt(material, int64(k.Area.Offset)); err != nil {
		return nil, &Error{ReasonDevice, err}
	}
	key, err := k.KDF.derive(passphrase, k.Area.KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if err := cryptArea(material, key, true); err != nil {
		return nil, err
	}
	volumeKey := merge(material, k.KeySize, hashes[k.AF.Hash])
	if _, err := h.verify(volumeKey); err != nil {
		clear(volumeKey)
		return nil, err
	}
	return volumeKey, nil
}

// verify returns the digest of the segment when key is its volume key.
func (h *Header) verify(key []byte) (*digest, error) {
	for _, d := range h.meta.digests {
		if len(d.Segments) == 0 {
			continue
		}
		if d.Iterations > h.Limits.Iterations {
			return nil, refuse(ReasonCost, "the digest wants %d iterations, the limit here is %d", d.Iterations, h.Limits.Iterations)
		}
		got, err := stretch(d.Hash, key, d.Salt, d.Iterations, len(d.Digest))
		if err != nil {
			return nil, err
		}
		if subtle.ConstantTimeCompare(got, d.Digest) != 1 {
			return nil, refuse(ReasonPassphrase, "this is not the volume key")
		}
		return d, nil
	}
	return nil, refuse(ReasonMetadata, "no digest for the payload")
}
