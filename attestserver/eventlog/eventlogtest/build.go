// Package eventlogtest writes event logs for tests, honest and forged.
package eventlogtest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
)

// Event is one entry to write.
type Event struct {
	PCR    int
	Type   uint32
	Digest [32]byte
	Data   []byte
}

// Said is an event whose digest is of its data.
func Said(pcr int, kind uint32, data []byte) Event {
	return Event{pcr, kind, sha256.Sum256(data), data}
}

// Encode writes a log with a SHA-1 and a SHA-256 bank.
func Encode(events ...Event) []byte {
	var spec, b bytes.Buffer
	spec.WriteString("Spec ID Event03\x00")
	le(&spec, uint32(0), [4]byte{0, 2, 0, 2}, uint32(2), uint16(4), uint16(20), uint16(0xb), uint16(32), byte(0))
	le(&b, uint32(0), uint32(3), [20]byte{}, uint32(spec.Len()))
	b.Write(spec.Bytes())
	for _, e := range events {
		le(&b, uint32(e.PCR), e.Type, uint32(2), uint16(4), sha1.Sum(e.Data), uint16(0xb), e.Digest, uint32(len(e.Data)))
		b.Write(e.Data)
	}
	return b.Bytes()
}

// Boot is what firmware measures that boots the two programs of an image by its
// first option, and what stub and kernel measure then: their digests.
func Boot(application, kernel [32]byte, nine, eleven [][32]byte) []Event {
	events := []Event{
		Said(0, 8, []byte("v\x001\x00\x00\x00")),
		Said(7, 0x80000001, []byte("SecureBoot=0")),
		Said(4, 0x80000007, []byte("Calling EFI Application from Boot Option")),
	}
	for pcr := range 8 {
		events = append(events, Said(pcr, 4, make([]byte, 4)))
	}
	events = append(events, Event{4, 0x80000003, application, []byte("path")})
	for _, d := range eleven {
		events = append(events, Event{11, 0xd, d, []byte(".section\x00")})
	}
	events = append(events, Event{4, 0x80000003, kernel, nil})
	for _, d := range nine {
		events = append(events, Event{9, 6, d, []byte("LOADED_IMAGE")})
	}
	return append(events, Said(5, 0x80000007, []byte("Exit Boot Services Invocation")))
}

func le(b *bytes.Buffer, values ...any) {
	for _, v := range values {
		if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			panic(err) // a bytes.Buffer does not fail, and the values have a fixed size
		}
	}
}
