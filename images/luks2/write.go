package luks2

import (
	"crypto/rand"
	"io"
)

// Write stores the header with the next sequence number: first the copy that is not
// the newest whole one, then, when that is on the device, the other. A power cut at
// any point leaves a whole copy with either the old or the new metadata. It refuses
// when the device meanwhile has a newer header.
func (h *Header) Write(d Device) error {
	text, err := h.meta.encode()
	if err != nil {
		return err
	}
	next := h.bin
	next.Sequence++
	if int64(len(text)) >= int64(next.Size)-binarySize {
		return refuse(ReasonFull, "%d bytes of metadata do not fit in %d", len(text), int64(next.Size)-binarySize)
	}
	primary, secondary, err := h.current(d)
	if err != nil {
		return err
	}
	// The number is used up even when a write fails: the device may hold some of it.
	h.bin.Sequence++
	primaryFirst := primary.state != CopyGood ||
		secondary.state == CopyGood && secondary.bin.Sequence > primary.bin.Sequence
	if err := writeCopies(d, next, text, primaryFirst, rand.Reader); err != nil {
		return err
	}
	h.json = text
	return nil
}

// current reads both copies and refuses when the device has a newer header than the
// one in memory: what is free in the one may be a keyslot in the other.
func (h *Header) current(d Device) (primary, secondary rawCopy, err error) {
	if primary, secondary, err = readCopies(d, h.size); err != nil {
		return
	}
	for _, c := range []rawCopy{primary, secondary} {
		if c.state == CopyGood && c.bin.Sequence > h.bin.Sequence {
			return primary, secondary, refuse(ReasonStale, "the device has header %d, this one was made of %d", c.bin.Sequence, h.bin.Sequence)
		}
	}
	return primary, secondary, nil
}

// Repair is Read, and when a copy is not good, it is made anew from the other one,
// bytes and sequence number unchanged. Health is as it was found.
func Repair(d Device, size int64) (*Header, Health, error) {
	h, health, err := Read(d, size)
	if err != nil || health.Good() {
		return h, health, err
	}
	at := int64(0)
	if health.Primary == CopyGood {
		at = int64(h.bin.Size)
	}
	if err := writeCopy(d, h.bin, h.json, at, rand.Reader); err != nil {
		return nil, health, err
	}
	return h, health, nil
}

func writeCopies(d Device, b binaryHeader, text []byte, primaryFirst bool, random io.Reader) error {
	at := [2]int64{int64(b.Size), 0}
	if primaryFirst {
		at[0], at[1] = at[1], at[0]
	}
	for _, offset := range at {
		if err := writeCopy(d, b, text, offset, random); err != nil {
			return err
		}
	}
	return nil
}

// writeCopy writes one copy and returns when it is on the device.
func writeCopy(d Device, b binaryHeader, text []byte, offset int64, random io.Reader) error {
	b.Offset, b.Magic = uint64(offset), magicSecondary
	if offset == 0 {
		b.Magic = magicPrimary
	}
	if _, err := io.ReadFull(random, b.Salt[:]); err != nil {
		return &Error{ReasonDevice, err}
	}
	all, err := encodeCopy(b, text)
	if err != nil {
		return err
	}
	return writeSync(d, all, offset)
}

func writeSync(d Device, b []byte, offset int64) error {
	if _, err := d.WriteAt(b, offset); err != nil {
		return &Error{ReasonDevice, err}
	}
	if err := d.Sync(); err != nil {
		return &Error{ReasonDevice, err}
	}
	return nil
}
