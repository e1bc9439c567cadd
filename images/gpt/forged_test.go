package gpt

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// forge changes the header at both places and gives it a right checksum.
func forge(d *disk, change func(h []byte)) {
	for _, off := range []int64{SectorSize, d.size - SectorSize} {
		h := make([]byte, SectorSize)
		_, _ = d.ReadAt(h, off)
		change(h)
		clear(h[16:20])
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
		d.put(h, off)
	}
}

func TestForgedHeadersAreRefused(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func(h []byte){
		"4 billion entries":     func(h []byte) { le.PutUint32(h[80:], 0xFFFFFFFF) },
		"no entries":            func(h []byte) { le.PutUint32(h[80:], 0) },
		"entries of 2 GiB":      func(h []byte) { le.PutUint32(h[84:], 1<<31) },
		"entries of 127 bytes":  func(h []byte) { le.PutUint32(h[84:], 127) },
		"header of 513 bytes":   func(h []byte) { le.PutUint32(h[12:], 513) },
		"other revision":        func(h []byte) { le.PutUint32(h[8:], 0x20000) },
		"entries behind device": func(h []byte) { le.PutUint64(h[72:], 1<<63) },
		"entries at sector 0":   func(h []byte) { le.PutUint64(h[72:], 0) },
		"entries among data":    func(h []byte) { le.PutUint64(h[72:], 4096) },
		"usable behind device":  func(h []byte) { le.PutUint64(h[48:], 1<<62) },
		"usable from 0":         func(h []byte) { le.PutUint64(h[40:], 0) },
		"stands elsewhere":      func(h []byte) { le.PutUint64(h[24:], 77) },
		"usable on the header":  func(h []byte) { le.PutUint64(h[48:], 300*mib-1) },
		"fewer usable sectors":  func(h []byte) { le.PutUint64(h[48:], 100*mib) },
	} {
		d := written(t, example())
		forge(d, change)
		if table, health, err := Read(d, d.count()); err == nil {
			t.Errorf("%s: %+v, %v", name, table, health)
		}
	}
	d := written(t, example())
	d.put(make([]byte, SectorSize), SectorSize)
	d.put(make([]byte, SectorSize), d.size-SectorSize)
	if _, _, err := Read(d, d.count()); reason(err) != ReasonMissing {
		t.Errorf("no table: %v", err)
	}
	if _, _, err := Read(written(t, example()), 200*mib); reason(err) != ReasonDamaged {
		t.Errorf("on a smaller device: %v", err)
	}
}

// A header on a large device that asks for a gigabyte of entries is refused before anybody reads them.
func TestEntriesAreCappedBeforeTheyAreRead(t *testing.T) {
	d := written(t, example())
	for _, c := range []struct{ entries, size uint32 }{{1024, 1 << 20}, {1025, 128}, {1 << 20, 1 << 12}} {
		forge(d, func(h []byte) {
			binary.LittleEndian.PutUint32(h[80:], c.entries)
			binary.LittleEndian.PutUint32(h[84:], c.size)
			binary.LittleEndian.PutUint64(h[40:], 1<<30)
			binary.LittleEndian.PutUint64(h[48:], 1<<31)
			binary.LittleEndian.PutUint64(h[32:], 1<<40-1)
		})
		b := make([]byte, SectorSize)
		_, _ = d.ReadAt(b, SectorSize)
		if h, err := decodeHeader(b, 1, 1<<40); reason(err) != ReasonDamaged {
			t.Errorf("%d entries of %d bytes: %+v, %v", c.entries, c.size, h, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	// The device is the first and the last 40 sectors; the rest is empty.
	const part, sectors = 40 * SectorSize, 4 * mib
	table := &Table{DiskID: id(9), Sectors: sectors, Partitions: []Partition{{Number: 1, Name: "PCCONF", Type: TypeLinux, ID: id(1), First: mib, Last: 2*mib - 1}}}
	d := written(f, table)
	seed := make([]byte, 2*part)
	_, _ = d.ReadAt(seed[:part], 0)
	_, _ = d.ReadAt(seed[part:], d.size-part)
	f.Add(seed)
	f.Add(bytes.Replace(seed, []byte("EFI PART"), []byte("EFI TRAP"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != 2*part {
			return
		}
		d := newDisk(sectors)
		d.put(b[:part], 0)
		d.put(b[part:], d.size-part)
		// Checksums stop nearly every change: they are made right, so that what they cover is reached.
		for _, off := range []int64{SectorSize, d.size - SectorSize} {
			h := make([]byte, SectorSize)
			_, _ = d.ReadAt(h, off)
			if at := binary.LittleEndian.Uint64(h[72:]); at < sectors-arraySectors {
				array := make([]byte, arraySize)
				_, _ = d.ReadAt(array, int64(at)*SectorSize)
				binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(array))
			}
			clear(h[16:20])
			binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
			d.put(h, off)
		}
		got, _, err := Read(d, sectors)
		if err != nil {
			return
		}
		again, health, err := Read(written(t, got), got.Sectors)
		if err != nil || !health.OK() || !equal(again, got) {
			t.Errorf("what was read cannot be written: %v, %v\n%+v\n%+v", err, health, got, again)
		}
	})
}
