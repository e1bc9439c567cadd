package fat

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// slot is a directory entry; Path is its name alone until List joins it.
type slot struct {
	Entry
	short   string // empty where the name is the short one
	cluster uint32
	root    bool
}

// List returns every file and directory, sorted by path.
func (f *FS) List() ([]Entry, error) {
	var out []Entry
	seen := map[uint32]bool{}
	if f.g.fat32 {
		seen[f.g.rootCluster] = true
	}
	budget := maxSlots
	var walk func(dir *slot, prefix string, depth int) error
	walk = func(dir *slot, prefix string, depth int) error {
		slots, err := f.readDir(dir, &budget)
		if err != nil {
			return err
		}
		for _, s := range slots {
			e := s.Entry
			e.Path = prefix + e.Path
			out = append(out, e)
			if !s.Dir {
				continue
			}
			if seen[s.cluster] || depth == maxDepth {
				return refuse(ReasonDamaged, "directory %.200s is there twice or lies too deep", e.Path)
			}
			seen[s.cluster] = true
			if err := walk(s, e.Path+"/", depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(&slot{root: true}, "", 1); err != nil {
		return nil, err
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

// readDir returns the entries of a directory; budget is what the whole call may still look at.
func (f *FS) readDir(dir *slot, budget *int) ([]*slot, error) {
	raw, err := f.dirBytes(dir)
	if err != nil {
		return nil, err
	}
	var out []*slot
	var long longName
	taken := map[string]bool{}
	for off := 0; off+slotSize <= len(raw); off += slotSize {
		e := raw[off:][:slotSize]
		if e[0] == 0 {
			break
		}
		if *budget--; *budget < 0 {
			return nil, refuse(ReasonSize, "more than %d directory entries", maxSlots)
		}
		switch {
		case e[0] == 0xE5: // removed
			long = longName{}
		case e[11]&0x3F == attrLong:
			long.add(e)
		case e[11]&attrLabel != 0:
			long = longName{}
		default:
			s := f.slot(e, &long)
			long = longName{}
			if s.Path == "." || s.Path == ".." {
				continue
			}
			// Which of two files of one name a reader takes is the reader's affair: what
			// is measured here could be the other one than what the firmware started.
			names := s.names(e)
			for _, n := range names {
				if taken[n] {
					return nil, refuse(ReasonName, "%.200q is there twice", s.Path)
				}
			}
			for _, n := range names {
				taken[n] = true
			}
			out = append(out, s)
		}
	}
	return out, nil
}

// names are the ways in which a reader may find an entry: by its eleven bytes, and
// by either name whatever its case. A name with characters of a code page that
// nobody tells is found by its bytes alone.
func (s *slot) names(e []byte) []string {
	out := []string{"\x00" + string(e[:11])}
	for _, n := range []string{s.Path, s.short} {
		if n != "" && !strings.ContainsRune(n, utf8.RuneError) {
			out = append(out, folded(n))
		}
	}
	return out
}

// folded is the same for all names that strings.EqualFold takes for one.
func folded(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, name)
}

// dirBytes reads a directory up to its end mark or the end of its chain.
func (f *FS) dirBytes(dir *slot) ([]byte, error) {
	if dir.root && !f.g.fat32 {
		b := make([]byte, f.g.rootSectors*f.g.sector)
		if err := readFull(f.r, b, f.g.rootStart()*f.g.sector); err != nil {
			return nil, fmt.Errorf("fat: root directory: %w", err)
		}
		return b, nil
	}
	cluster := dir.cluster
	if dir.root {
		cluster = f.g.rootCluster
	}
	t := table{f: f}
	var out []byte
	for {
		if !f.g.has(cluster) {
			return nil, refuse(ReasonDamaged, "directory %.80q leads to cluster %d", dir.Path, cluster)
		}
		// A chain that loops is longer than any directory.
		if len(out) >= maxDirSize {
			return nil, refuse(ReasonDamaged, "directory %.80q is larger than %d bytes", dir.Path, maxDirSize)
		}
		b := make([]byte, f.g.clusterSize())
		if err := readFull(f.r, b, f.g.offset(cluster)); err != nil {
			return nil, fmt.Errorf("fat: directory %.80q: %w", dir.Path, err)
		}
		out = append(out, b...)
		for off := 0; off < len(b); off += slotSize {
			if b[off] == 0 {
				return out, nil
			}
		}
		next, end, err := t.next(cluster)
		if err != nil || end {
			return out, err
		}
		cluster = next
	}
}

func (f *FS) slot(e []byte, long *longName) *slot {
	le := binary.LittleEndian
	s := &slot{cluster: uint32(le.Uint16(e[26:]))}
	if f.g.fat32 {
		s.cluster |= uint32(le.Uint16(e[20:])) << 16
	}
	s.Dir = e[11]&attrDir != 0
	if !s.Dir {
		s.Size = int64(le.Uint32(e[28:]))
	}
	raw := short(e[:11])
	if raw[0] == 0x05 {
		raw[0] = 0xE5 // the first byte of a Japanese name (specification section 6)
	}
	base, ext := text(raw[:8]), text(raw[8:])
	if e[12]&0x08 != 0 { // Windows NT: the base is in lower case
		base = strings.ToLower(base)
	}
	if e[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	s.Path = base
	if ext != "" {
		s.Path += "." + ext
	}
	if name := long.name(short(e[:11]).sum()); name != "" {
		s.short, s.Path = s.Path, name
	}
	date, clock := le.Uint16(e[24:]), le.Uint16(e[22:])
	s.ModTime = time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31),
		int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
	return s
}

// text is a padded field of a short name; what is not ASCII depends on a code page that nobody tells.
func text(b []byte) string {
	var s strings.Builder
	for _, c := range []byte(strings.TrimRight(string(b), " ")) {
		if c < 0x20 || c >= 0x7F || c == '/' {
			s.WriteRune('\uFFFD')
			continue
		}
		s.WriteByte(c)
	}
	return s.String()
}

// longName collects the slots of a long name, which stand last part first.
type longName struct {
	units []uint16
	next  int // number of the slot that must follow; 0 when the name is complete
	sum   byte
	valid bool
}

func (l *longName) add(e []byte) {
	n := int(e[0] & 0x1F)
	if e[0]&0x40 != 0 {
		*l = longName{next: n, sum: e[13], valid: n >= 1 && n*lfnUnits <= maxName+lfnUnits}
	}
	if !l.valid || n != l.next || e[13] != l.sum {
		*l = longName{}
		return
	}
	part := make([]uint16, 0, lfnUnits+len(l.units))
	for _, off := range unitOffsets {
		part = append(part, binary.LittleEndian.Uint16(e[off:]))
	}
	l.units = append(part, l.units...)
	l.next--
}

// name returns the long name when it is complete, belongs to the short one and could be a name.
func (l *longName) name(sum byte) string {
	if !l.valid || l.next != 0 || l.sum != sum {
		return ""
	}
	units := l.units
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	name := string(utf16.Decode(units))
	if checkName(name) != nil {
		return ""
	}
	return name
}
