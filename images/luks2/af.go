package luks2

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"io"

	"golang.org/x/crypto/xts"
)

// split spreads key over 4000 stripes, all of which are needed to get it back, so
// that losing any part of the area on the medium loses the key (LUKS1
// specification, section 2.4).
func split(key []byte, newHash func() hash.Hash, random io.Reader) ([]byte, error) {
	n := len(key)
	out := make([]byte, n*stripes)
	if _, err := io.ReadFull(random, out[:n*(stripes-1)]); err != nil {
		clear(out)
		return nil, &Error{ReasonUsage, err}
	}
	d := mix(out[:n*(stripes-1)], n, newHash())
	subtle.XORBytes(out[n*(stripes-1):], d, key)
	clear(d)
	return out, nil
}

// merge is the reverse of split. len(area) is n*stripes.
func merge(area []byte, n int, newHash func() hash.Hash) []byte {
	d := mix(area[:n*(stripes-1)], n, newHash())
	subtle.XORBytes(d, d, area[n*(stripes-1):])
	return d
}

// mix chains all stripes: each is added and the sum diffused.
func mix(all []byte, n int, h hash.Hash) []byte {
	d := make([]byte, n)
	var sum []byte
	for ; len(all) > 0; all = all[n:] {
		subtle.XORBytes(d, d, all[:n])
		for i := 0; i*h.Size() < n; i++ {
			part := d[i*h.Size() : min((i+1)*h.Size(), n)]
			h.Reset()
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(i)))
			h.Write(part)
			sum = h.Sum(sum[:0])
			copy(part, sum)
		}
	}
	clear(sum)
	return d
}

// cryptArea encrypts or decrypts a keyslot area in place: sectors of 512 bytes,
// numbered from the area's beginning.
func cryptArea(area, key []byte, decrypt bool) error {
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return &Error{ReasonUnsupported, err}
	}
	for i := 0; i < len(area)/ivSector; i++ {
		s := area[i*ivSector : (i+1)*ivSector]
		if decrypt {
			c.Decrypt(s, s, uint64(i))
		} else {
			c.Encrypt(s, s, uint64(i))
		}
	}
	return nil
}
