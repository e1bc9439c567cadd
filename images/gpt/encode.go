package gpt

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"unicode/utf16"
)

const (
	signature = "EFI PART"
	revision  = 0x00010000
	nameUnits = 36
)

// header is a GPT header (UEFI 2.10 section 5.3.2) in memory.
type header struct {
	my, alternate         uint64
	first, last           uint64 // usable sectors
	disk                  GUID
	array                 uint64 // sector of the entries
	entries, size         uint32
	arrayCRC              uint32
	arrayBytes, arraySpan uint64 // bytes of the array, sectors it takes
}

func (h *header) encode() []byte {
	b := make([]byte, SectorSize)
	le := binary.LittleEndian
	copy(b, signature)
	le.PutUint32(b[8:], revision)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[24:], h.my)
	le.PutUint64(b[32:], h.alternate)
	le.PutUint64(b[40:], h.first)
	le.PutUint64(b[48:], h.last)
	copy(b[56:], h.disk[:])
	le.PutUint64(b[72:], h.array)
	le.PutUint32(b[80:], h.entries)
	le.PutUint32(b[84:], h.size)
	le.PutUint32(b[88:], h.arrayCRC)
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:headerSize]))
	return b
}

// decodeHeader reads the header that stands at sector lba of a device of sectors.
func decodeHeader(b []byte, lba, sectors uint64) (*header, error) {
	le := binary.LittleEndian
	if string(b[:8]) != signature {
		return nil, refuse(ReasonMissing, "sector %d does not begin like a table", lba)
	}
	size := le.Uint32(b[12:])
	if le.Uint32(b[8:]) != revision || size < headerSize || size > SectorSize {
		return nil, refuse(ReasonDamaged, "header at sector %d: revision %#x, %d bytes long", lba, le.Uint32(b[8:]), size)
	}
	plain := append([]byte(nil), b[:size]...)
	clear(plain[16:20])
	if crc32.ChecksumIEEE(plain) != le.Uint32(b[16:]) {
		return nil, refuse(ReasonDamaged, "header at sector %d: its checksum differs", lba)
	}
	h := &header{
		my: le.Uint64(b[24:]), alternate: le.Uint64(b[32:]),
		first: le.Uint64(b[40:]), last: le.Uint64(b[48:]),
		disk:  GUID(b[56:72]),
		array: le.Uint64(b[72:]), entries: le.Uint32(b[80:]), size: le.Uint32(b[84:]), arrayCRC: le.Uint32(b[88:]),
	}
	h.arrayBytes = uint64(h.entries) * uint64(h.size)
	h.arraySpan = (h.arrayBytes + SectorSize - 1) / SectorSize
	switch {
	case h.my != lba:
		return nil, refuse(ReasonDamaged, "header at sector %d says that it stands at %d", lba, h.my)
	case h.entries == 0 || h.entries > maxEntries || h.size < entrySize || h.size&(h.size-1) != 0 || h.arrayBytes > maxArray:
		return nil, refuse(ReasonDamaged, "header at sector %d: %d entries of %d bytes", lba, h.entries, h.size)
	case h.array < 2 || h.array >= sectors || h.arraySpan > sectors-h.array:
		return nil, refuse(ReasonDamaged, "header at sector %d: entries at sector %d of %d", lba, h.array, sectors)
	case h.first < 2 || h.last < h.first || h.last >= sectors:
		return nil, refuse(ReasonDamaged, "header at sector %d: sectors %d to %d are usable of %d", lba, h.first, h.last, sectors)
	case h.array+h.arraySpan > h.first && h.array <= h.last:
		return nil, refuse(ReasonDamaged, "header at sector %d: entries at sector %d among the usable sectors", lba, h.array)
	case lba >= h.first && lba <= h.last, h.alternate >= h.first && h.alternate <= h.last:
		return nil, refuse(ReasonDamaged, "header at sector %d or its other copy stands among the usable sectors", lba)
	}
	return h, nil
}

func encodeEntries(ps []Partition) []byte {
	b := make([]byte, arraySize)
	le := binary.LittleEndian
	for _, p := range ps {
		e := b[(p.Number-1)*entrySize:][:entrySize]
		copy(e, p.Type[:])
		copy(e[16:], p.ID[:])
		le.PutUint64(e[32:], p.First)
		le.PutUint64(e[40:], p.Last)
		le.PutUint64(e[48:], p.Attributes)
		for i, u := range utf16.Encode([]rune(p.Name)) {
			le.PutUint16(e[56+2*i:], u)
		}
	}
	return b
}

// decodeEntries returns the used entries of an array that the header describes.
func decodeEntries(b []byte, h *header) ([]Partition, error) {
	le := binary.LittleEndian
	var ps []Partition
	for i := 0; i < int(h.entries); i++ {
		e := b[i*int(h.size):][:entrySize]
		if GUID(e[:16]) == (GUID{}) {
			continue
		}
		if i >= MaxPartitions {
			return nil, refuse(ReasonInvalid, "entry %d is used, %d partitions are possible", i+1, MaxPartitions)
		}
		units := make([]uint16, 0, nameUnits)
		for j := 56; j < entrySize; j += 2 {
			u := le.Uint16(e[j:])
			if u == 0 {
				break
			}
			units = append(units, u)
		}
		p := Partition{
			Number: i + 1, Name: strings.ToValidUTF8(string(utf16.Decode(units)), "\uFFFD"), Type: GUID(e[:16]), ID: GUID(e[16:32]),
			First: le.Uint64(e[32:]), Last: le.Uint64(e[40:]), Attributes: le.Uint64(e[48:]),
		}
		if p.First < h.first || p.Last > h.last {
			return nil, refuse(ReasonInvalid, "partition %d takes sectors %d to %d, %d to %d can be used", p.Number, p.First, p.Last, h.first, h.last)
		}
		ps = append(ps, p)
	}
	return ps, nil
}
