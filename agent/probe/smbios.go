package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"portcullis/attestserver/protocol"
)

// Types of SMBIOS structures (DMTF DSP0134 3.7, section 7).
const (
	smbiosMemoryDevice = 17
	smbiosEnd          = 127
)

// maxDIMMs bounds the list: no board has more slots.
const maxDIMMs = 256

// dimm is what stays the same of a memory module: speed and voltage as they are
// configured are the firmware's choice of the day and are left out.
type dimm struct {
	locator                    string
	sizeMiB                    uint64
	kind                       byte // DSP0134 7.18.2
	manufacturer, serial, part string
}

func (d dimm) String() string {
	return strings.TrimSpace(fmt.Sprintf("%d MiB type %d %s %s %s", d.sizeMiB, d.kind, d.manufacturer, d.part, d.serial))
}

// parseDIMMs walks an SMBIOS table (DSP0134 6.1) and returns its memory devices,
// empty slots among them: a slot that is filled changes. A table that breaks off
// ends the list.
func parseDIMMs(table []byte) (out []dimm) {
	for len(table) >= 4 && len(out) < maxDIMMs {
		kind, length := table[0], int(table[1])
		if length < 4 || length > len(table) || kind == smbiosEnd {
			return out
		}
		body := table[:length]
		words, rest, ok := bytes.Cut(table[length:], []byte{0, 0})
		if !ok {
			return out
		}
		table = rest
		if kind == smbiosMemoryDevice && length >= 0x15 {
			out = append(out, memoryDevice(body, bytes.Split(words, []byte{0})))
		}
	}
	return out
}

// memoryDevice reads a structure of type 17 (DSP0134 7.18).
func memoryDevice(b []byte, words [][]byte) dimm {
	text := func(at int) string {
		if at >= len(b) || b[at] == 0 || int(b[at]) > len(words) {
			return ""
		}
		s := words[b[at]-1]
		return clean(string(s[:min(len(s), protocol.MaxString/8)]))
	}
	d := dimm{locator: text(0x10), kind: b[0x12], manufacturer: text(0x17), serial: text(0x18), part: text(0x1a)}
	switch size := binary.LittleEndian.Uint16(b[0x0c:]); {
	case size == 0x7fff && len(b) >= 0x20: // the extended size, MiB
		d.sizeMiB = uint64(binary.LittleEndian.Uint32(b[0x1c:]) &^ (1 << 31))
	case size == 0xffff: // unknown
	case size&0x8000 != 0: // KiB
		d.sizeMiB = uint64(size&0x7fff) >> 10
	default:
		d.sizeMiB = uint64(size)
	}
	return d
}
