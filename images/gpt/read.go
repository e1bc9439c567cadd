package gpt

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Health tells what Read found. An empty fault is a whole copy.
type Health struct {
	PrimaryFault string // why the copy at sector 1 cannot be used
	BackupFault  string // why no second copy can be used, or that it differs from the first
	FromBackup   bool   // the table was read from the second copy
	BackupSector uint64 // where the second copy's header was found or expected
}

// OK tells that both copies are whole and equal.
func (h Health) OK() bool { return h.PrimaryFault == "" && h.BackupFault == "" }

// String is one line for logs.
func (h Health) String() string {
	switch {
	case h.OK():
		return "both copies are whole"
	case h.FromBackup:
		return fmt.Sprintf("read from the backup at sector %d: %s", h.BackupSector, h.PrimaryFault)
	default:
		return "only the primary is whole: " + h.BackupFault
	}
}

// Read reads the table of a device of sectors. The table may be for a smaller
// device (an image on a larger card): Table.Sectors then is its own size, see Grow.
//
// The copy at sector 1 comes first. When it cannot be used, the backup is looked
// for where the primary's header says that it is, then where the protective MBR
// says that the table's own device ended, and at the last sector of the device
// last: what an older owner of the card left there is somebody else's table. A
// backup of another disk is never taken while the primary's header can still tell.
func Read(r io.ReaderAt, sectors uint64) (*Table, Health, error) {
	var health Health
	if sectors < MinSectors || sectors > maxSectors {
		return nil, health, refuse(ReasonSize, "%d sectors, %d to %d are possible", sectors, uint64(MinSectors), uint64(maxSectors))
	}
	front := make([]byte, 2*SectorSize)
	if err := readFull(r, front, 0); err != nil {
		return nil, health, fmt.Errorf("read partition table: %w", err)
	}
	h, t, err := readCopy(r, 1, sectors)
	if err == nil {
		health.BackupSector = h.alternate
		health.BackupFault = backupFault(r, h, t, sectors)
		return t, health, nil
	}
	health.PrimaryFault = err.Error()
	var candidates []uint64
	if h != nil && h.alternate < sectors {
		candidates = append(candidates, h.alternate)
	}
	if n := protectedSectors(front[:SectorSize]); n > 0 && n < sectors {
		candidates = append(candidates, n-1)
	}
	candidates = append(candidates, sectors-1)
	damaged := false // something that began like a table was there
	for _, lba := range candidates {
		if lba < 2 {
			continue
		}
		b, t, backupErr := readCopy(r, lba, sectors)
		switch {
		case backupErr != nil:
			// A copy that begins like one says more than a sector without one.
			damaged = damaged || !missing(backupErr)
			if health.BackupFault == "" || !missing(backupErr) {
				health.BackupSector, health.BackupFault = lba, backupErr.Error()
			}
			continue
		case h != nil && h.disk != b.disk:
			damaged = true
			health.BackupSector, health.BackupFault = lba, fmt.Sprintf("sector %d holds the table of another disk", lba)
			continue
		}
		health.BackupSector, health.BackupFault, health.FromBackup = lba, "", true
		return t, health, nil
	}
	reason := ReasonDamaged
	if missing(err) && !damaged {
		reason = ReasonMissing
	}
	return nil, health, refuse(reason, "primary: %s; backup: %s", health.PrimaryFault, health.BackupFault)
}

// readCopy reads the copy whose header is at lba. The header is returned also
// when only the rest of the copy is wrong.
func readCopy(r io.ReaderAt, lba, sectors uint64) (*header, *Table, error) {
	b := make([]byte, SectorSize)
	if err := readFull(r, b, int64(lba)*SectorSize); err != nil {
		return nil, nil, refuse(ReasonDamaged, "sector %d cannot be read: %v", lba, err)
	}
	h, err := decodeHeader(b, lba, sectors)
	if err != nil {
		return nil, nil, err
	}
	own := h.alternate + 1 // sectors of the table's own device
	if lba != 1 {
		own = lba + 1
	}
	if h.alternate == lba || h.alternate != 1 && lba != 1 {
		return h, nil, refuse(ReasonDamaged, "header at sector %d: its other copy is said to be at %d", lba, h.alternate)
	}
	if own > sectors || own < 2 {
		return h, nil, refuse(ReasonSize, "the table is for %d sectors, the device has %d", own, sectors)
	}
	array := make([]byte, h.arrayBytes)
	if err := readFull(r, array, int64(h.array)*SectorSize); err != nil {
		return h, nil, refuse(ReasonDamaged, "entries at sector %d cannot be read: %v", h.array, err)
	}
	if crc32.ChecksumIEEE(array) != h.arrayCRC {
		return h, nil, refuse(ReasonDamaged, "entries at sector %d: their checksum differs", h.array)
	}
	t := &Table{DiskID: h.disk, Sectors: own}
	if t.Partitions, err = decodeEntries(array, h); err != nil {
		return h, nil, err
	}
	return h, t, t.check()
}

// backupFault says what is wrong with the second copy of a table whose first is whole.
func backupFault(r io.ReaderAt, h *header, t *Table, sectors uint64) string {
	b, _, err := readCopy(r, h.alternate, sectors)
	switch {
	case err != nil:
		return err.Error()
	case b.disk != h.disk || b.arrayCRC != h.arrayCRC || b.first != h.first || b.last != h.last:
		return fmt.Sprintf("the copy at sector %d differs", h.alternate)
	case t.Sectors != sectors:
		return fmt.Sprintf("the copy is at sector %d, the device ends at %d", h.alternate, sectors-1)
	}
	return ""
}

func missing(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == ReasonMissing
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}
