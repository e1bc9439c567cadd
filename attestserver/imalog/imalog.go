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

// ErrReplay is a list of which no beginning leads to the register.
var ErrReplay = errors.New("IMA list does not lead to the quoted register")

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

// Next reads the first entry of list. It shares list's memory.
func Next(list []byte) (e Entry, err error) {
	// Register, SHA-1 of the template, name, and but for the oldest template the data with its length.
	const head = 4 + 20 + 4
	if len(list) < head {
		return e, fmt.Errorf("%w: cut off", ErrMalformed)
	}
	pcr, name := binary.LittleEndian.Uint32(list), binary.LittleEndian.Uint32(list[24:])
	if pcr != register || name == 0 || name > maxName || len(list) < head+int(name)+4 {
		return e, fmt.Errorf("%w: an entry of register %d with a name of %d bytes", ErrMalformed, pcr, name)
	}
	e.Template = string(list[head : head+int(name)])
	if e.Template == "ima" {
		return e, fmt.Errorf("%w: an entry of the old form", ErrMalformed)
	}
	at := head + int(name)
	size := binary.LittleEndian.Uint32(list[at:])
	at += 4
	if size > maxData || int(size) > len(list)-at {
		return e, fmt.Errorf("%w: an entry of %d bytes", ErrMalformed, size)
	}
	e.Violated = [20]byte(list[4:24]) == [20]byte{}
	e.Data, e.Size = list[at:at+int(size)], at+int(size)
	return e, nil
}

// Replay follows list from the value start and returns how many of its bytes lead
// to want: the shortest beginning that does, which can be none. The kernel goes on
// measuring between a quote and the reading of the list, so more may follow; what
// follows is not proven, and not read.
func Replay(start [sha256.Size]byte, list []byte, want [sha256.Size]byte) (size int, err error) {
	var b [2 * sha256.Size]byte
	copy(b[:], start[:])
	for value := start; value != want; {
		if size == len(list) {
			return 0, ErrReplay
		}
		e, err := Next(list[size:])
		if err != nil {
			return 0, err
		}
		d := e.Extended()
		copy(b[sha256.Size:], d[:])
		value = sha256.Sum256(b[:])
		copy(b[:], value[:])
		size += e.Size
	}
	return size, nil
}

// Advance follows all of list, which must end with a whole entry, to the value it leads to.
func Advance(start [sha256.Size]byte, list []byte) (value [sha256.Size]byte, err error) {
	value = start
	for len(list) > 0 {
		e, err := Next(list)
		if err != nil {
			return value, err
		}
		d := e.Extended()
		value = sha256.Sum256(append(value[:], d[:]...))
		list = list[e.Size:]
	}
	return value, nil
}
