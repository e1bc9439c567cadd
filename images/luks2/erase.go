package luks2

import "crypto/rand"

// Erase makes the volume impossible to open ever again, by the keyslots' passphrases,
// the recovery key or anybody: random bytes over every keyslot area, then over both
// headers, then over the rest of the header area. It also erases what Read refuses,
// with headerArea (bytes, at most MaxKeyslotsSize) as the place of the payload. The
// caller has asked the operator; nothing undoes it. A volume that is open stays so
// until it is closed, and an SD card may keep remapped blocks.
func Erase(d Device, size, headerArea int64) error {
	if headerArea <= 0 || headerArea > MaxKeyslotsSize || headerArea > size {
		return refuse(ReasonUsage, "header area of %d bytes on a device of %d", headerArea, size)
	}
	if h, _, err := Read(d, size); err == nil {
		for _, n := range sorted(h.meta.keyslots) {
			a := h.meta.keyslots[n].Area
			if err := fill(d, int64(a.Offset), int64(a.Size), rand.Reader); err != nil {
				return err
			}
		}
		headers := 2 * int64(h.bin.Size)
		if err := fill(d, 0, headers, rand.Reader); err != nil {
			return err
		}
		headerArea = max(headerArea, headers+int64(h.meta.config.KeyslotsSize))
	}
	return fill(d, 0, headerArea, rand.Reader)
}
