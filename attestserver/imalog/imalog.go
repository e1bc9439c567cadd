// Package imalog reads the list in which Linux's integrity subsystem (IMA) notes
// what it measured, as binary_runtime_measurements shows it, and replays it against
// register 10 of the SHA-256 bank, piece by piece. Package expect is its caller. The
// list is in the byte order of the PC, which is little-endian.
package imalog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits of one entry, in bytes.
const (
	maxName = 255     // ima-ng, ima-sig, …
	maxData = 1 << 16 // path, digest and signature
)

const register = 10

// ErrMalformed is a list that cannot be read.
var ErrMalformed = errors.New("malformed IMA list")

// Entry is one measurement.
type Entry struct {
	Template string // name of the form of Data
	Data     []byte // fields, each with its length (u32) before it
	Violated bool   // the file was changed while it was measured: no digest is known
	Size     int    // bytes of the list
}

// Extended is what the register was extended with.
func (e *Entry) Extended() (d [sha256.Size]byte) {
	if e.Violated {
		for i := range d {
			d[i] = 0xff
		}
		return d
	}
	return sha256.Sum256(e.Data)
}

// errShort is an entry of which the end is missing.
var errShort = fmt.Errorf("%w: cut off", ErrMalformed)

// Next reads the first entry of list. It shares list's memory.
func Next(list []byte) (e Entry, err error) {
	// Register, SHA-1 of the template, name, and but for the oldest template the data with its length.
	const head = 4 + 20 + 4
	if len(list) < head {
		return e, errShort
	}
	pcr, name := binary.LittleEndian.Uint32(list), binary.LittleEndian.Uint32(list[24:])
	if pcr != register || name == 0 || name > maxName {
		return e, fmt.Errorf("%w: an entry of register %d with a name of %d bytes", ErrMalformed, pcr, name)
	}
	at := head + int(name)
	if len(list) < at+4 {
		return e, errShort
	}
	if e.Template = string(list[head:at]); e.Template == "ima" {
		return e, fmt.Errorf("%w: an entry of the old form", ErrMalformed)
	}
	size := binary.LittleEndian.Uint32(list[at:])
	if at += 4; size > maxData {
		return e, fmt.Errorf("%w: an entry of %d bytes", ErrMalformed, size)
	}
	if len(list) < at+int(size) {
		return e, errShort
	}
	e.Violated = [20]byte(list[4:24]) == [20]byte{}
	e.Data, e.Size = list[at:at+int(size)], at+int(size)
	return e, nil
}

// Replay follows list from the value start until it leads to want, which can be at
// once: the kernel goes on measuring between a quote and the reading of the list, so
// more may follow; what follows is not proven, and not read. It returns the bytes
// that it followed and the value they lead to. Where want is not reached before the
// last whole entry it follows to there, and reached is false. Each entry that it follows
// is handed to each, whose error ends it; nil: nobody wants them.
func Replay(start [sha256.Size]byte, list []byte, want [sha256.Size]byte, each func(Entry) error) (size int, value [sha256.Size]byte, reached bool, err error) {
	var b [2 * sha256.Size]byte
	for value = start; value != want; {
		e, err := Next(list[size:])
		if errors.Is(err, errShort) {
			return size, value, false, nil
		}
		if err != nil {
			return 0, start, false, err
		}
		if each != nil {
			if err := each(e); err != nil {
				return 0, start, false, err
			}
		}
		d := e.Extended()
		copy(b[:], value[:])
		copy(b[sha256.Size:], d[:])
		value = sha256.Sum256(b[:])
		size += e.Size
	}
	return size, value, true, nil
}
