package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// Write writes both copies and the protective MBR. The order is backup entries,
// backup header, primary entries, primary header, MBR: while one copy is being
// replaced the other one is whole, also when the table has just grown and its
// backup moves to the new end of the device. Where w can be read as well and its
// primary copy is broken, the primary is written first: the backup may be all
// there is. Where w has a Sync method (an *os.File) it is called behind each
// copy, so that the device cannot turn the order round.
func (t *Table) Write(w io.WriterAt) error {
	if err := t.check(); err != nil {
		return err
	}
	array := encodeEntries(t.Partitions)
	last := t.Sectors - 1
	primary := header{
		my: 1, alternate: last, first: firstUsable, last: t.LastUsable(), disk: t.DiskID,
		array: 2, entries: MaxPartitions, size: entrySize, arrayCRC: crc32.ChecksumIEEE(array),
	}
	backup := primary
	backup.my, backup.alternate, backup.array = last, 1, last-arraySectors
	order := []struct {
		what string
		h    header
	}{{"backup", backup}, {"primary", primary}}
	if r, ok := w.(io.ReaderAt); ok {
		if _, _, err := readCopy(r, 1, t.Sectors); err != nil {
			order[0], order[1] = order[1], order[0]
		}
	}
	for _, c := range order {
		if _, err := w.WriteAt(array, int64(c.h.array)*SectorSize); err != nil {
			return fmt.Errorf("write partition table: %s entries: %w", c.what, err)
		}
		if err := writeSync(w, c.h.encode(), int64(c.h.my)*SectorSize); err != nil {
			return fmt.Errorf("write partition table: %s header: %w", c.what, err)
		}
	}
	if err := writeSync(w, protective(t.Sectors), 0); err != nil {
		return fmt.Errorf("write partition table: protective MBR: %w", err)
	}
	return nil
}

func writeSync(w io.WriterAt, b []byte, off int64) error {
	if _, err := w.WriteAt(b, off); err != nil {
		return err
	}
	if s, ok := w.(interface{ Sync() error }); ok {
		return s.Sync()
	}
	return nil
}

// protective is the MBR that keeps tools without GPT off the device (UEFI 2.10 section 5.2.3).
func protective(sectors uint64) []byte {
	b := make([]byte, SectorSize)
	e := b[446:]
	e[1], e[2], e[3] = 0, 2, 0 // first sector as CHS 0/0/2
	e[4] = 0xEE
	e[5], e[6], e[7] = 0xFF, 0xFF, 0xFF
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(sectors-1, 0xFFFFFFFF)))
	b[510], b[511] = 0x55, 0xAA
	return b
}

// protectedSectors is the size of the device for which an MBR was written; 0 when it is no protective MBR.
func protectedSectors(mbr []byte) uint64 {
	if mbr[510] != 0x55 || mbr[511] != 0xAA || mbr[446+4] != 0xEE {
		return 0
	}
	n := uint64(binary.LittleEndian.Uint32(mbr[446+12:]))
	if n == 0xFFFFFFFF {
		return 0
	}
	return n + 1
}
