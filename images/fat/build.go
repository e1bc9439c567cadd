package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"
)

// Attributes of directory entries.
const (
	attrLabel   = 0x08
	attrDir     = 0x10
	attrArchive = 0x20
	attrLong    = 0x0F
)

// Build writes a file system with these files to w, which reads as zeros before:
// unused space is not written, nor is w extended to its end. See BuildFiles for
// large files.
func Build(w io.WriterAt, o Options, files map[string][]byte) error {
	list := make([]File, 0, len(files))
	for path, b := range files {
		list = append(list, File{Path: path, Size: int64(len(b)), Content: bytes.NewReader(b)})
	}
	return BuildFiles(w, o, list)
}

// BuildFiles is Build for contents that are streamed. The order of the files is
// of no importance; what they take follows their sorted paths.
func BuildFiles(w io.WriterAt, o Options, files []File) error {
	if o.Size < MinSize || o.Size > MaxSize || o.Size%SectorSize != 0 {
		return refuse(ReasonSize, "a file system of %d bytes, %d to %d in whole sectors are possible", o.Size, int64(MinSize), int64(MaxSize))
	}
	if err := checkLabel(o.Label); err != nil {
		return err
	}
	if o.Time.IsZero() {
		o.Time = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if y := o.Time.UTC().Year(); y < 1980 || y > 2107 {
		return refuse(ReasonMalformed, "the format has no year %d", y)
	}
	root, err := grow(files)
	if err != nil {
		return err
	}
	b := &builder{w: w, o: o, g: plan(o.Size), next: 2}
	if err := b.place(root, true); err != nil {
		return err
	}
	if err := b.write(root, nil); err != nil {
		return err
	}
	return b.finish()
}

// node is a file or a directory on its way to the volume.
type node struct {
	name    string
	file    *File // nil for a directory
	sub     []*node
	short   short
	long    bool
	cluster uint32 // first; 0 for an empty file and for FAT16's root
	count   int64  // clusters
}

// grow makes the tree, every directory sorted by name.
func grow(files []File) (*node, error) {
	if len(files) > maxFiles {
		return nil, refuse(ReasonSize, "%d files, at most %d are built", len(files), maxFiles)
	}
	files = append([]File(nil), files...)
	sort.Slice(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	root := &node{}
	for i := range files {
		f := &files[i]
		if f.Size < 0 || f.Size > maxFileSize {
			return nil, refuse(ReasonSize, "%s has %d bytes, the format ends at %d", f.Path, f.Size, int64(maxFileSize))
		}
		words := strings.Split(f.Path, "/")
		if len(words) > maxDepth {
			return nil, refuse(ReasonName, "%s lies deeper than %d directories", f.Path, maxDepth)
		}
		dir := root
		for j, word := range words {
			if err := checkName(word); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Path, err)
			}
			last := j == len(words)-1
			next := dir.child(word)
			switch {
			case next == nil:
				next = &node{name: word}
				if last {
					next.file = f
				}
				dir.sub = append(dir.sub, next)
			case last || next.file != nil:
				// Upper and lower case are the same name here.
				return nil, refuse(ReasonName, "%s is there twice", f.Path)
			}
			dir = next
		}
	}
	return root, root.sort()
}

func (n *node) child(name string) *node {
	for _, c := range n.sub {
		if strings.EqualFold(c.name, name) {
			return c
		}
	}
	return nil
}

// sort sorts the directory, names its entries and goes on below.
func (n *node) sort() error {
	sort.Slice(n.sub, func(i, j int) bool { return n.sub[i].name < n.sub[j].name })
	taken := map[short]bool{}
	for _, c := range n.sub {
		var err error
		if c.short, c.long, err = shorten(c.name, taken); err != nil {
			return err
		}
		if err := c.sort(); err != nil {
			return err
		}
	}
	return nil
}

// builder lays clusters out one behind the other and writes what they hold.
type builder struct {
	w    io.WriterAt
	o    Options
	g    geometry
	next uint32 // first free cluster
	ends []uint32
}

// place gives clusters to a directory, its files and what lies below, in this order.
func (b *builder) place(n *node, root bool) error {
	bytes := b.dirSize(n, root)
	if bytes > maxDirSize || root && !b.g.fat32 && bytes > rootEntries*slotSize {
		return refuse(ReasonSize, "directory %q has too many entries", n.name)
	}
	if !root || b.g.fat32 {
		if err := b.allocate(n, max(bytes, 1)); err != nil {
			return err
		}
	}
	for _, c := range n.sub {
		if c.file == nil {
			if err := b.place(c, false); err != nil {
				return err
			}
		} else if err := b.allocate(c, c.file.Size); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) allocate(n *node, size int64) error {
	n.count = (size + b.g.clusterSize() - 1) / b.g.clusterSize()
	if n.count == 0 {
		return nil
	}
	if int64(b.next)-2+n.count > b.g.clusters {
		return refuse(ReasonSize, "the files do not fit into %d bytes: %q needs %d more", b.o.Size, n.name, size)
	}
	n.cluster = b.next
	b.next += uint32(n.count)
	b.ends = append(b.ends, b.next-1)
	return nil
}

func (b *builder) dirSize(n *node, root bool) int64 {
	slots := 0
	if !root {
		slots = 2
	} else if b.o.Label != "" {
		slots = 1
	}
	for _, c := range n.sub {
		slots++
		if c.long {
			slots += len(longSlots(c.name, c.short)) / slotSize
		}
	}
	return int64(slots) * slotSize
}

// write writes a directory and everything below it; parent is nil for the root.
func (b *builder) write(n, parent *node) error {
	var dir []byte
	if parent == nil {
		if b.o.Label != "" {
			dir = append(dir, b.entry(short(labelField(b.o.Label)), attrLabel, 0, 0)...)
		}
	} else {
		up := parent.cluster
		if parent.name == "" {
			up = 0 // the root, also FAT32's (specification section 6.5)
		}
		dir = append(dir, b.entry(makeShort(".", ""), attrDir, n.cluster, 0)...)
		dir = append(dir, b.entry(makeShort("..", ""), attrDir, up, 0)...)
	}
	for _, c := range n.sub {
		if c.long {
			dir = append(dir, longSlots(c.name, c.short)...)
		}
		if c.file == nil {
			dir = append(dir, b.entry(c.short, attrDir, c.cluster, 0)...)
			if err := b.write(c, n); err != nil {
				return err
			}
			continue
		}
		dir = append(dir, b.entry(c.short, attrArchive, c.cluster, uint32(c.file.Size))...)
		if err := b.copy(c); err != nil {
			return err
		}
	}
	at := b.g.rootStart() * SectorSize
	if n.cluster != 0 {
		at = b.g.offset(n.cluster)
	}
	return b.put(dir, at)
}

func (b *builder) entry(s short, attr byte, cluster, size uint32) []byte {
	e := make([]byte, slotSize)
	le := binary.LittleEndian
	copy(e, s[:])
	e[11] = attr
	t := b.o.Time.UTC()
	date := uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day())
	clock := uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2)
	if attr != attrLabel {
		le.PutUint16(e[14:], clock)
		le.PutUint16(e[16:], date)
		le.PutUint16(e[18:], date)
	}
	le.PutUint16(e[20:], uint16(cluster>>16))
	le.PutUint16(e[22:], clock)
	le.PutUint16(e[24:], date)
	le.PutUint16(e[26:], uint16(cluster))
	le.PutUint32(e[28:], size)
	return e
}

// copy streams a file's content to its place.
func (b *builder) copy(n *node) error {
	if n.file.Size == 0 {
		return nil
	}
	buf := make([]byte, min(n.file.Size, 1<<20))
	base := b.g.offset(n.cluster)
	for off := int64(0); off < n.file.Size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), n.file.Size-off)]
		if err := readFull(n.file.Content, buf, off); err != nil {
			return fmt.Errorf("fat: content of %s at %d of %d: %w", n.file.Path, off, n.file.Size, err)
		}
		if err := b.put(buf, base+off); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) put(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := b.w.WriteAt(p, off); err != nil {
		return fmt.Errorf("fat: write %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}

// finish writes the tables and the boot sector.
func (b *builder) finish() error {
	table := b.table()
	for i := int64(0); i < b.g.copies; i++ {
		if err := b.put(table, (b.g.reserved+i*b.g.fatSectors)*SectorSize); err != nil {
			return err
		}
	}
	boot := b.g.boot(b.o)
	if b.g.fat32 {
		info := b.g.info(int64(b.next) - 2)
		for _, at := range []int64{0, bootBackup} {
			if err := b.put(info, (at+infoSector)*SectorSize); err != nil {
				return err
			}
		}
		if err := b.put(boot, bootBackup*SectorSize); err != nil {
			return err
		}
	}
	return b.put(boot, 0)
}

// table is the used beginning of the allocation table: every cluster leads to
// the next one but those at the end of a file.
func (b *builder) table() []byte {
	t := make([]byte, int64(b.next)*b.g.entrySize())
	le := binary.LittleEndian
	set := func(i, v uint32) {
		if b.g.fat32 {
			le.PutUint32(t[i*4:], v&0x0FFFFFFF)
		} else {
			le.PutUint16(t[i*2:], uint16(v))
		}
	}
	set(0, 0x0FFFFF00|media)
	set(1, 0x0FFFFFFF) // end mark; its upper bits say: unmounted cleanly, no read errors
	for i := uint32(2); i < b.next; i++ {
		set(i, i+1)
	}
	for _, i := range b.ends {
		set(i, 0x0FFFFFFF)
	}
	return t
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
