package protocol

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Limits of op noise.
const (
	MaxNoise      = 64 << 30 // bytes
	MaxNoiseSlice = 1 << 20  // bytes of one slice
	MaxSlices     = 64
)

// Slice is a piece of the noise, in bytes.
type Slice struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// NoiseParams says what noise must be resident and which pieces of it are read.
type NoiseParams struct {
	Seed   string  `json:"seed"` // hex, 32 bytes: of this boot session
	Size   int64   `json:"size"` // bytes
	Slices []Slice `json:"slices"`
}

// Check bounds sizes and places.
func (p *NoiseParams) Check() error {
	if b, err := hex.DecodeString(p.Seed); err != nil || len(b) != 32 {
		return errors.New("a seed that is not 32 bytes in hex")
	}
	if p.Size < PageSize || p.Size > MaxNoise || p.Size%PageSize != 0 {
		return fmt.Errorf("noise of %d bytes", p.Size)
	}
	if err := atMost("slices", len(p.Slices), MaxSlices); err != nil {
		return err
	}
	for _, s := range p.Slices {
		if s.Offset < 0 || s.Length < 1 || s.Length > MaxNoiseSlice || s.Offset > p.Size-s.Length {
			return fmt.Errorf("slice of %d bytes at %d", s.Length, s.Offset)
		}
	}
	return nil
}

// NoiseData is the answer of op noise.
type NoiseData struct {
	Size   int64 `json:"size"`    // resident bytes; 0 where the machine has not enough free memory
	Locked bool  `json:"locked"`  // cannot be swapped out
	FillMs int64 `json:"fill_ms"` // what filling it took, once a boot
}

// Check has little to refuse.
func (d *NoiseData) Check() error {
	if d.Size < 0 || d.FillMs < 0 {
		return errors.New("noise below zero")
	}
	return nil
}

// Noise writes the noise of a seed from byte offset on into b: AES-256 in
// counter mode (NIST SP 800-38A) with the seed as its key.
func Noise(seed [32]byte, offset int64, b []byte) {
	block, err := aes.NewCipher(seed[:])
	if err != nil {
		panic(err) // the size of the key is right
	}
	var iv [aes.BlockSize]byte
	binary.BigEndian.PutUint64(iv[8:], uint64(offset/aes.BlockSize))
	stream := cipher.NewCTR(block, iv[:])
	var skip [aes.BlockSize]byte
	stream.XORKeyStream(skip[:offset%aes.BlockSize], skip[:offset%aes.BlockSize])
	clear(b)
	stream.XORKeyStream(b, b)
}
