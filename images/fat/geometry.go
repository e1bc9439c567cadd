package fat

import "encoding/binary"

const (
	fats        = 2
	rootEntries = 512 // of FAT16, whose root directory has a fixed size
	slotSize    = 32  // bytes of a directory entry
	media       = 0xF8
	infoSector  = 1 // FAT32: free count and hint
	bootBackup  = 6 // FAT32: copy of sectors 0 to 2

	minFAT16 = 4085  // clusters; fewer would be FAT12
	minFAT32 = 65525 // clusters
)

// geometry is where things lie, in sectors of sector bytes.
type geometry struct {
	fat32       bool
	sector      int64 // bytes
	total       int64 // sectors
	spc         int64 // sectors for each cluster
	reserved    int64
	copies      int64
	fatSectors  int64
	rootSectors int64 // FAT16 only
	rootCluster uint32
	clusters    int64
}

func (g *geometry) rootStart() int64   { return g.reserved + g.copies*g.fatSectors }
func (g *geometry) dataStart() int64   { return g.rootStart() + g.rootSectors }
func (g *geometry) clusterSize() int64 { return g.spc * g.sector }

// offset is the byte at which a cluster begins.
func (g *geometry) offset(cluster uint32) int64 {
	return (g.dataStart() + int64(cluster-2)*g.spc) * g.sector
}

func (g *geometry) entrySize() int64 {
	if g.fat32 {
		return 4
	}
	return 2
}

// plan chooses the geometry for a new file system. The data area begins on a
// multiple of 4 KiB, so that an aligned partition gives aligned files.
func plan(size int64) geometry {
	g := geometry{sector: SectorSize, total: size / SectorSize, copies: fats, fat32: size >= fat32From, spc: 1}
	want := int64(32768) // clusters: small ones waste little, these still make a small table
	if g.fat32 {
		g.spc, g.reserved, g.rootCluster = 8, 32, 2
		want = 2 << 20
	} else {
		g.reserved, g.rootSectors = 1, rootEntries*slotSize/SectorSize
	}
	for g.total/g.spc > want {
		g.spc *= 2
	}
	// More clusters need a longer table, which leaves fewer clusters: from above this settles.
	g.fatSectors = ((g.total/g.spc+2)*g.entrySize() + SectorSize - 1) / SectorSize
	for {
		g.clusters = (g.total - g.dataStart()) / g.spc
		need := ((g.clusters+2)*g.entrySize() + SectorSize - 1) / SectorSize
		if need >= g.fatSectors {
			break
		}
		g.fatSectors--
	}
	const align = 4096 / SectorSize
	g.reserved += (align - g.dataStart()%align) % align
	g.clusters = (g.total - g.dataStart()) / g.spc
	return g
}

// boot returns the boot sector (specification section 3).
func (g *geometry) boot(o Options) []byte {
	b := make([]byte, SectorSize)
	le := binary.LittleEndian
	copy(b, []byte{0xEB, 0x3C, 0x90})
	copy(b[3:], "MSWIN4.1") // what the specification recommends: some readers look at it
	le.PutUint16(b[11:], SectorSize)
	b[13] = byte(g.spc)
	le.PutUint16(b[14:], uint16(g.reserved))
	b[16] = fats
	if g.total < 1<<16 {
		le.PutUint16(b[19:], uint16(g.total))
	} else {
		le.PutUint32(b[32:], uint32(g.total))
	}
	b[21] = media
	le.PutUint16(b[24:], 32) // sectors and heads: nobody has asked for a long time, but zero is refused by some
	le.PutUint16(b[26:], 64)
	ext := b[36:]
	kind := "FAT16   "
	if g.fat32 {
		kind = "FAT32   "
		b[1] = 0x58
		b[19], b[20] = 0, 0
		le.PutUint32(b[32:], uint32(g.total))
		le.PutUint32(b[36:], uint32(g.fatSectors))
		le.PutUint32(b[44:], g.rootCluster)
		le.PutUint16(b[48:], infoSector)
		le.PutUint16(b[50:], bootBackup)
		ext = b[64:]
	} else {
		le.PutUint16(b[17:], rootEntries)
		le.PutUint16(b[22:], uint16(g.fatSectors))
	}
	ext[0], ext[2] = 0x80, 0x29
	le.PutUint32(ext[3:], o.ID)
	copy(ext[7:], labelField(o.Label))
	copy(ext[18:], kind)
	b[510], b[511] = 0x55, 0xAA
	return b
}

// info returns FAT32's FSInfo sector (specification section 5).
func (g *geometry) info(used int64) []byte {
	b := make([]byte, SectorSize)
	le := binary.LittleEndian
	copy(b, "RRaA")
	copy(b[484:], "rrAa")
	le.PutUint32(b[488:], uint32(g.clusters-used))
	le.PutUint32(b[492:], uint32(used+1)) // the last cluster in use
	b[510], b[511] = 0x55, 0xAA
	return b
}
