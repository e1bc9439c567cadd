package luks2

import "portcullis/images/card"

// CheckLayout refuses a header that is valid and yet not of the kind that Format makes
// with its default options: pi-init maps a volume by it, and maps no other cipher, no
// other sectors and no other place than those it was written for.
func (h *Header) CheckLayout() error {
	s := h.meta.segments[0] // Read: the only one, of cipherName
	switch {
	case s.SectorSize != defaultSectorSize:
		return refuse(ReasonUnsupported, "sectors of %d bytes instead of %d", s.SectorSize, defaultSectorSize)
	case s.Offset != card.CryptHeader:
		return refuse(ReasonUnsupported, "the payload begins at %d instead of %d", s.Offset, int64(card.CryptHeader))
	case s.Size != "dynamic":
		return refuse(ReasonUnsupported, "a payload of %.40q bytes instead of all to the end", s.Size)
	case s.IVTweak != 0:
		return refuse(ReasonUnsupported, "the first sector counts as %d", s.IVTweak)
	case len(h.meta.digests) != 1:
		return refuse(ReasonUnsupported, "%d digests instead of one", len(h.meta.digests))
	}
	for n, k := range h.meta.keyslots {
		if k.KeySize != VolumeKeySize {
			return refuse(ReasonUnsupported, "keyslot %d holds a key of %d bytes instead of %d", n, k.KeySize, VolumeKeySize)
		}
	}
	return nil
}
