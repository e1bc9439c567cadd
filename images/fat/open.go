package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// FS is an open file system. It holds no copy of the volume: what the reader
// gives changes what is read. It may be used by several goroutines when the
// reader may.
type FS struct {
	r     io.ReaderAt
	g     geometry
	id    uint32
	label string
}

// Open reads the boot sector of a FAT16 or FAT32 file system that has at most
// size bytes and checks that its fields agree.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, SectorSize)
	if size < SectorSize {
		return nil, refuse(ReasonMalformed, "%d bytes are no file system", size)
	}
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("fat: boot sector: %w", err)
	}
	le := binary.LittleEndian
	if b[510] != 0x55 || b[511] != 0xAA || b[0] != 0xEB && b[0] != 0xE9 {
		return nil, refuse(ReasonMalformed, "no boot sector")
	}
	f := &FS{r: r}
	g := &f.g
	g.sector, g.spc = int64(le.Uint16(b[11:])), int64(b[13])
	g.reserved, g.copies = int64(le.Uint16(b[14:])), int64(b[16])
	g.total, g.fatSectors = int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if g.total == 0 {
		g.total = int64(le.Uint32(b[32:]))
	}
	ext := b[36:]
	if g.fatSectors == 0 {
		g.fat32 = true
		g.fatSectors, g.rootCluster = int64(le.Uint32(b[36:])), le.Uint32(b[44:])
		ext = b[64:]
		if v := le.Uint16(b[42:]); v != 0 {
			return nil, refuse(ReasonMalformed, "version %d of FAT32", v)
		}
	}
	if ext[2] == 0x29 {
		f.id = le.Uint32(ext[3:])
		if l := strings.TrimRight(string(ext[7:18]), " "); l != "NO NAME" {
			f.label = text([]byte(l))
		}
	}
	root := int64(le.Uint16(b[17:])) * slotSize
	return f, g.check(root, size)
}

// check completes the geometry that a boot sector describes and refuses what cannot be.
func (g *geometry) check(root, size int64) error {
	switch {
	case g.sector < 512 || g.sector > 4096 || g.sector&(g.sector-1) != 0:
		return refuse(ReasonMalformed, "sectors of %d bytes", g.sector)
	case g.spc == 0 || g.spc&(g.spc-1) != 0:
		return refuse(ReasonMalformed, "clusters of %d sectors", g.spc)
	case g.reserved == 0 || g.copies < 1 || g.copies > 2 || g.fatSectors == 0:
		return refuse(ReasonMalformed, "%d reserved sectors, %d tables of %d sectors", g.reserved, g.copies, g.fatSectors)
	case g.fat32 && root != 0 || !g.fat32 && (root == 0 || root%g.sector != 0):
		return refuse(ReasonMalformed, "a root directory of %d bytes", root)
	}
	g.rootSectors = root / g.sector
	if g.total*g.sector > size || g.dataStart() >= g.total {
		return refuse(ReasonMalformed, "%d sectors of %d bytes, data from %d on, in %d bytes", g.total, g.sector, g.dataStart(), size)
	}
	g.clusters = (g.total - g.dataStart()) / g.spc
	most := int64(0x0FFFFFF5)
	if !g.fat32 {
		most = minFAT32 - 1
	}
	if g.clusters < 1 || !g.fat32 && g.clusters < minFAT16 || g.clusters > most {
		return refuse(ReasonMalformed, "%d clusters make neither FAT16 nor FAT32", g.clusters)
	}
	if (g.clusters+2)*g.entrySize() > g.fatSectors*g.sector {
		return refuse(ReasonMalformed, "a table of %d sectors for %d clusters", g.fatSectors, g.clusters)
	}
	if g.fat32 && !g.has(g.rootCluster) {
		return refuse(ReasonMalformed, "the root directory is at cluster %d of %d", g.rootCluster, g.clusters)
	}
	return nil
}

func (g *geometry) has(cluster uint32) bool { return cluster >= 2 && int64(cluster)-2 < g.clusters }

// Label returns the volume's label as the boot sector has it; it may be empty.
func (f *FS) Label() string { return f.label }

// ID returns the volume serial number.
func (f *FS) ID() uint32 { return f.id }

// ReadFile returns a file's content. Larger ones than max bytes are refused with ReasonSize.
func (f *FS) ReadFile(path string, max int64) ([]byte, error) {
	e, err := f.find(path)
	if err != nil {
		return nil, err
	}
	if e.Size > max {
		return nil, refuse(ReasonSize, "%s has %d bytes, at most %d are read", path, e.Size, max)
	}
	if e.Size > f.g.clusters*f.g.clusterSize() {
		return nil, refuse(ReasonDamaged, "%s has %d bytes, more than the volume", path, e.Size)
	}
	b := make([]byte, 0, e.Size)
	err = f.runs(e.cluster, f.needs(e.Size), func(start uint32, n int64) error {
		part := b[len(b):min(int64(len(b))+n*f.g.clusterSize(), e.Size)]
		b = b[:len(b)+len(part)]
		return readFull(f.r, part, f.g.offset(start))
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// CopyFile writes a file's content to w, a piece at a time. Larger ones than max
// bytes are refused with ReasonSize.
func (f *FS) CopyFile(w io.Writer, path string, max int64) error {
	e, err := f.find(path)
	if err != nil {
		return err
	}
	if e.Size > max {
		return refuse(ReasonSize, "%s has %d bytes, at most %d are read", path, e.Size, max)
	}
	left, buf := e.Size, make([]byte, 1<<20)
	err = f.runs(e.cluster, f.needs(e.Size), func(start uint32, n int64) error {
		for at, end := f.g.offset(start), f.g.offset(start)+n*f.g.clusterSize(); at < end && left > 0; {
			part := buf[:min(int64(len(buf)), end-at, left)]
			if err := readFull(f.r, part, at); err != nil {
				return err
			}
			if _, err := w.Write(part); err != nil {
				return err
			}
			at, left = at+int64(len(part)), left-int64(len(part))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// Extent returns where a contiguous file lies on the volume, in bytes. Others
// are refused with ReasonFragmented; an empty file has none.
func (f *FS) Extent(path string) (offset, size int64, err error) {
	e, err := f.find(path)
	if err != nil {
		return 0, 0, err
	}
	if e.Size == 0 {
		return 0, 0, refuse(ReasonFragmented, "%s is empty", path)
	}
	count := 0
	err = f.runs(e.cluster, f.needs(e.Size), func(start uint32, _ int64) error {
		if count++; count > 1 {
			return refuse(ReasonFragmented, "%s is not contiguous", path)
		}
		offset = f.g.offset(start)
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("extent of %s: %w", path, err)
	}
	return offset, e.Size, nil
}

// needs is the number of clusters that size bytes take.
func (f *FS) needs(size int64) int64 { return (size + f.g.clusterSize() - 1) / f.g.clusterSize() }

// find walks to a file.
func (f *FS) find(path string) (*slot, error) {
	words := strings.Split(path, "/")
	if len(words) > maxDepth {
		return nil, refuse(ReasonNotFound, "%s", path)
	}
	dir := &slot{Entry: Entry{Dir: true}, root: true}
	budget := maxSlots
	for i, word := range words {
		slots, err := f.readDir(dir, &budget)
		if err != nil {
			return nil, err
		}
		dir = nil
		for _, s := range slots {
			if strings.EqualFold(s.Path, word) || s.short != "" && strings.EqualFold(s.short, word) {
				dir = s
				break
			}
		}
		if dir == nil || dir.Dir != (i < len(words)-1) {
			return nil, refuse(ReasonNotFound, "%s", path)
		}
	}
	return dir, nil
}

// runs calls fn for every contiguous run of the chain that begins at first and
// has exactly n clusters. A chain that loops is longer than the file it belongs to.
func (f *FS) runs(first uint32, n int64, fn func(start uint32, n int64) error) error {
	if n == 0 {
		return nil
	}
	t := table{f: f}
	start, length, cluster := first, int64(0), first
	for i := int64(0); i < n; i++ {
		if !f.g.has(cluster) {
			return refuse(ReasonDamaged, "the chain from cluster %d leads to %d after %d of %d", first, cluster, i, n)
		}
		length++
		next, end, err := t.next(cluster)
		if err != nil {
			return err
		}
		if i == n-1 && !end {
			return refuse(ReasonDamaged, "the chain from cluster %d goes on behind %d clusters", first, n)
		}
		if i == n-1 || next != cluster+1 {
			if err := fn(start, length); err != nil {
				return err
			}
			start, length = next, 0
		}
		cluster = next
	}
	return nil
}

// table reads the first allocation table, one page at a time.
type table struct {
	f    *FS
	page []byte
	at   int64 // byte of the table at which page begins
}

const tablePage = 4096

// next returns the cluster behind c, or that c is the last one.
func (t *table) next(c uint32) (next uint32, end bool, err error) {
	g := &t.f.g
	off := int64(c) * g.entrySize()
	if page := off / tablePage * tablePage; t.page == nil || t.at != page {
		// The table's last page may be shorter than the others.
		b := make([]byte, min(tablePage, g.fatSectors*g.sector-page))
		if err := readFull(t.f.r, b, g.reserved*g.sector+page); err != nil {
			return 0, false, fmt.Errorf("fat: allocation table: %w", err)
		}
		t.page, t.at = b, page
	}
	b := t.page[off-t.at:]
	if g.fat32 {
		v := binary.LittleEndian.Uint32(b) & 0x0FFFFFFF
		return v, v >= 0x0FFFFFF8, nil
	}
	v := binary.LittleEndian.Uint16(b)
	return uint32(v), v >= 0xFFF8, nil
}
