package fat

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	lfnUnits = 13 // UTF-16 units in one slot of a long name
	maxName  = 255
)

// shortExtra are the characters that a short name may hold besides A to Z and digits (specification section 6.1).
const shortExtra = "$%'-_@~`!(){}^#&"

// checkName refuses what no long name can hold (specification section 7).
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || !utf8.ValidString(name):
		return refuse(ReasonName, "%q is no file name", name)
	case strings.ContainsAny(name, `"*/:<>?\|`) || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") || strings.HasPrefix(name, " "):
		return refuse(ReasonName, "%q has a character that the format does not allow there", name)
	case len(utf16.Encode([]rune(name))) > maxName:
		return refuse(ReasonName, "%.40q… is longer than %d UTF-16 units", name, maxName)
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7F {
			return refuse(ReasonName, "%q has a control character", name)
		}
	}
	return nil
}

// labelField is the label as boot sector and root directory hold it.
func labelField(label string) []byte {
	if label == "" {
		label = "NO NAME"
	}
	return []byte(fmt.Sprintf("%-11s", label))
}

func checkLabel(label string) error {
	if len(label) > 11 || strings.TrimSpace(label) != label {
		return refuse(ReasonName, "label %q is longer than 11 characters or has space around it", label)
	}
	for _, r := range label {
		if !shortRune(r) && r != ' ' {
			return refuse(ReasonName, "label %q: %q is not possible", label, r)
		}
	}
	return nil
}

func shortRune(r rune) bool {
	return r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(shortExtra, r)
}

// short is a name as it stands in a directory entry: base and extension, padded with spaces.
type short [11]byte

// shorten returns the short name for a long one that is not taken yet, and
// whether the long name must be kept as well.
func shorten(name string, taken map[short]bool) (short, bool, error) {
	base, ext := name, ""
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		base, ext = name[:i], name[i+1:]
	}
	b, lossyBase := shortPart(base)
	e, lossyExt := shortPart(ext)
	lossy := lossyBase || lossyExt || len(b) > 8 || len(e) > 3 || b == ""
	s := makeShort(b, e)
	if !lossy && !taken[s] {
		taken[s] = true
		return s, s.String() != name, nil
	}
	for n := 1; n < 1000000; n++ {
		tail := fmt.Sprintf("~%d", n)
		if s := makeShort(b[:min(len(b), 8-len(tail))]+tail, e); !taken[s] {
			taken[s] = true
			return s, true, nil
		}
	}
	return s, false, refuse(ReasonName, "%q: every short name is taken", name)
}

// shortPart maps one part of a name to the characters of short names and tells whether something was lost.
func shortPart(s string) (string, bool) {
	var b strings.Builder
	lossy := false
	for _, r := range strings.ToUpper(s) {
		switch {
		case shortRune(r):
			b.WriteRune(r)
		case r == ' ' || r == '.':
			lossy = true
		default:
			b.WriteByte('_')
			lossy = true
		}
	}
	return b.String(), lossy
}

func makeShort(base, ext string) short {
	return short([]byte(fmt.Sprintf("%-8.8s%-3.3s", base, ext)))
}

// String is the name with its point.
func (s short) String() string {
	base, ext := strings.TrimRight(string(s[:8]), " "), strings.TrimRight(string(s[8:]), " ")
	if ext != "" {
		return base + "." + ext
	}
	return base
}

// sum ties the slots of a long name to its short one.
func (s short) sum() byte {
	var c byte
	for _, b := range s {
		c = c>>1 | c<<7
		c += b
	}
	return c
}

// unitOffsets are the bytes of a slot at which the units of a long name stand.
var unitOffsets = [lfnUnits]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

// longSlots returns the slots that stand before the entry of a name.
func longSlots(name string, s short) []byte {
	units := utf16.Encode([]rune(name))
	n := (len(units) + lfnUnits - 1) / lfnUnits
	out := make([]byte, 0, n*slotSize)
	for i := n; i >= 1; i-- {
		b := make([]byte, slotSize)
		b[0] = byte(i)
		if i == n {
			b[0] |= 0x40
		}
		b[11], b[13] = attrLong, s.sum()
		for j, off := range unitOffsets {
			k := (i-1)*lfnUnits + j
			switch {
			case k < len(units):
				binary.LittleEndian.PutUint16(b[off:], units[k])
			case k > len(units):
				binary.LittleEndian.PutUint16(b[off:], 0xFFFF)
			}
		}
		out = append(out, b...)
	}
	return out
}
