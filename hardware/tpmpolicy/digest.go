package tpmpolicy

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// Numbers of TPM 2.0 Library Part 2.
const (
	ccPolicyPCR       = 0x0000017F
	ccPolicyNV        = 0x00000149
	ccPolicyAuthorize = 0x0000016A

	algSHA256 = 0x000B
	algNull   = 0x0010
	algECC    = 0x0023
	curveP256 = 0x0003

	opUnsignedLE = 0x0009 // TPM_EO_UNSIGNED_LE
)

// NVAttributes of our counters, TPMA_NV as defined: OwnerWrite, AuthWrite, counter,
// OwnerRead, AuthRead, NoDA. Everybody may read and raise them; nobody can lower
// one: a counter that is deleted and made again goes on above the highest value
// that the chip ever counted (Part 3, 31.8).
const NVAttributes = 1<<1 | 1<<2 | 1<<4 | 1<<17 | 1<<18 | 1<<25

// NVWritten is the attribute that the chip adds at the first increment. It is part
// of the name that policies are computed over.
const NVWritten = 1 << 29

// CounterSize is the data size of a counter, in bytes.
const CounterSize = 8

// CounterName is the name of our counter at index, after its first increment.
func CounterName(index uint32) []byte {
	var p []byte
	p = binary.BigEndian.AppendUint32(p, index)
	p = binary.BigEndian.AppendUint16(p, algSHA256)
	p = binary.BigEndian.AppendUint32(p, NVAttributes|NVWritten)
	p = binary.BigEndian.AppendUint16(p, 0) // authPolicy
	p = binary.BigEndian.AppendUint16(p, CounterSize)
	return name(p)
}

// KeyAttributes of the policy key when it is loaded: sign, userWithAuth.
const KeyAttributes = 1<<18 | 1<<6

// KeyName is the name of the policy key as a loaded TPM object. pub is on P-256.
func KeyName(pub *ecdsa.PublicKey) ([]byte, error) {
	x, y, err := point(pub)
	if err != nil {
		return nil, err
	}
	var p []byte
	p = binary.BigEndian.AppendUint16(p, algECC)
	p = binary.BigEndian.AppendUint16(p, algSHA256)
	p = binary.BigEndian.AppendUint32(p, KeyAttributes)
	p = binary.BigEndian.AppendUint16(p, 0) // authPolicy
	for _, n := range []uint16{algNull, algNull, curveP256, algNull} {
		p = binary.BigEndian.AppendUint16(p, n) // symmetric, scheme, curve, KDF
	}
	for _, c := range [][]byte{x, y} {
		p = binary.BigEndian.AppendUint16(p, uint16(len(c)))
		p = append(p, c...)
	}
	return name(p), nil
}

// point returns the coordinates of a P-256 key, 32 bytes each.
func point(pub *ecdsa.PublicKey) (x, y []byte, err error) {
	k, err := pub.ECDH() // refuses a point that is not on the curve
	if err != nil {
		return nil, nil, fmt.Errorf("policy key: %w", err)
	}
	b := k.Bytes()
	if len(b) != 65 || pub.Params().Name != "P-256" {
		return nil, nil, fmt.Errorf("policy key is on %s, not on P-256", pub.Params().Name)
	}
	return b[1:33], b[33:], nil
}

// Digest is the approved policy: PolicyPCR over the registers, then PolicyNV:
// counter ≤ Sequence.
func (b *Branch) Digest() ([32]byte, error) {
	if err := b.check(); err != nil {
		return [32]byte{}, err
	}
	return Counted(PCRPolicy(b.PCRs), b.NVIndex, b.Sequence), nil
}

// PCRPolicy is the digest of a policy that is only PolicyPCR over the SHA-256 bank.
func PCRPolicy(pcrs map[int][32]byte) [32]byte {
	var d [32]byte
	composite := sha256.New()
	for _, i := range Numbers(pcrs) {
		v := pcrs[i]
		composite.Write(v[:])
	}
	return update(d, ccPolicyPCR, Selection(pcrs), composite.Sum(nil))
}

// Counted is the policy d, then PolicyNV: our counter at index ≤ most.
func Counted(d [32]byte, index uint32, most uint64) [32]byte {
	var args []byte
	args = binary.BigEndian.AppendUint64(args, most)
	args = binary.BigEndian.AppendUint16(args, 0) // offset
	args = binary.BigEndian.AppendUint16(args, opUnsignedLE)
	h := sha256.Sum256(args)
	return update(d, ccPolicyNV, h[:], CounterName(index))
}

// SealPolicy is the policy of what is sealed on a platform: PolicyAuthorize, that
// is, any policy that the key pub signed for that platform.
func SealPolicy(pub *ecdsa.PublicKey, p Platform) ([32]byte, error) {
	key, err := KeyName(pub)
	if err != nil {
		return [32]byte{}, err
	}
	if _, err := ParsePlatform(string(p)); err != nil {
		return [32]byte{}, err
	}
	var d [32]byte
	d = update(d, ccPolicyAuthorize, key)
	return sha256.Sum256(append(d[:], Ref(p)...)), nil
}

// Numbers returns the register numbers, ascending.
func Numbers(pcrs map[int][32]byte) []int {
	n := make([]int, 0, len(pcrs))
	for i := range pcrs {
		n = append(n, i)
	}
	slices.Sort(n)
	return n
}

// Selection is the TPML_PCR_SELECTION of the registers in the SHA-256 bank.
func Selection(pcrs map[int][32]byte) []byte {
	var s []byte
	s = binary.BigEndian.AppendUint32(s, 1)
	s = binary.BigEndian.AppendUint16(s, algSHA256)
	var mask [3]byte
	for i := range pcrs {
		mask[i/8] |= 1 << (i % 8)
	}
	return append(append(s, byte(len(mask))), mask[:]...)
}

func update(d [32]byte, cc uint32, parts ...[]byte) [32]byte {
	b := binary.BigEndian.AppendUint32(d[:], cc)
	for _, p := range parts {
		b = append(b, p...)
	}
	return sha256.Sum256(b)
}

func name(public []byte) []byte {
	h := sha256.Sum256(public)
	return append(binary.BigEndian.AppendUint16(nil, algSHA256), h[:]...)
}
