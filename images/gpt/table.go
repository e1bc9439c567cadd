package gpt

import (
	"sort"
	"unicode/utf16"
)

// Partition is one entry. First and Last are sectors of SectorSize, both inclusive.
type Partition struct {
	Number      int    // 1 to MaxPartitions: the place of the entry
	Name        string // at most 36 UTF-16 units
	Type, ID    GUID
	First, Last uint64
	Attributes  uint64
}

// Offset is where the partition begins on the device, in bytes.
func (p Partition) Offset() int64 { return int64(p.First) * SectorSize }

// Size is the partition's length in bytes.
func (p Partition) Size() int64 { return int64(p.Last-p.First+1) * SectorSize }

// Table is the partition table of a device of Sectors sectors.
type Table struct {
	DiskID     GUID
	Sectors    uint64
	Partitions []Partition // sorted by Number
}

// ByName returns the one partition with this name; none and two are refused with ReasonName.
func (t *Table) ByName(name string) (Partition, error) {
	var found []Partition
	for _, p := range t.Partitions {
		if p.Name == name {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Partition{}, refuse(ReasonName, "%d partitions are named %q", len(found), name)
	}
	return found[0], nil
}

// LastUsable is the last sector that a partition may take.
func (t *Table) LastUsable() uint64 { return t.Sectors - 2 - arraySectors }

// Grow fits the table to a device of sectors, which is not smaller than before,
// and extends the partition that lies last on the device up to the last whole
// MiB. Nothing is written: see Write.
func (t *Table) Grow(sectors uint64) error {
	if err := t.check(); err != nil {
		return err
	}
	if sectors < t.Sectors || sectors > maxSectors {
		return refuse(ReasonSize, "the table is for %d sectors, the device has %d", t.Sectors, sectors)
	}
	t.Sectors = sectors
	if len(t.Partitions) == 0 {
		return nil
	}
	last := 0
	for i, p := range t.Partitions {
		if p.Last > t.Partitions[last].Last {
			last = i
		}
	}
	end := (t.LastUsable() + 1) / AlignSectors * AlignSectors
	if p := &t.Partitions[last]; end > p.Last+1 {
		p.Last = end - 1
	}
	return nil
}

// check refuses a table that must not be written, and one that was read but cannot be true.
func (t *Table) check() error {
	if t.Sectors < MinSectors || t.Sectors > maxSectors {
		return refuse(ReasonSize, "%d sectors, %d to %d are possible", t.Sectors, uint64(MinSectors), uint64(maxSectors))
	}
	if t.DiskID == (GUID{}) {
		return refuse(ReasonInvalid, "the disk has no GUID")
	}
	numbers, ids := map[int]bool{}, map[GUID]bool{}
	for _, p := range t.Partitions {
		switch {
		case p.Number < 1 || p.Number > MaxPartitions || numbers[p.Number]:
			return refuse(ReasonInvalid, "partition number %d is out of range or there twice", p.Number)
		case p.Type == (GUID{}) || p.ID == (GUID{}) || ids[p.ID]:
			return refuse(ReasonInvalid, "partition %d has no type, no GUID, or the GUID of another one", p.Number)
		case p.First < firstUsable || p.Last < p.First || p.Last > t.LastUsable():
			return refuse(ReasonInvalid, "partition %d takes sectors %d to %d, %d to %d can be used",
				p.Number, p.First, p.Last, uint64(firstUsable), t.LastUsable())
		case len(utf16.Encode([]rune(p.Name))) > nameUnits:
			return refuse(ReasonInvalid, "partition %d: the name is longer than %d UTF-16 units", p.Number, nameUnits)
		}
		numbers[p.Number], ids[p.ID] = true, true
	}
	order := append([]Partition(nil), t.Partitions...)
	sort.Slice(order, func(i, j int) bool { return order[i].First < order[j].First })
	for i := 1; i < len(order); i++ {
		if order[i].First <= order[i-1].Last {
			return refuse(ReasonInvalid, "partitions %d and %d overlap", order[i-1].Number, order[i].Number)
		}
	}
	return nil
}
