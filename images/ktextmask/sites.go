package ktextmask

import (
	"cmp"
	"io"
	"slices"

	"portcullis/images/textpatch"
)

// Margin is how many bytes of text must be known before and after a piece for
// the sites on its edges to be judged: no site is longer.
const Margin = 8

// site is one place that the kernel patches at run time.
type site struct {
	Range
	target uint32 // of a jump label
	form   func(s site, code []byte, text uint64) bool
}

// Sites are the places that the kernel patches at run time, in order, with
// what may stand there.
type Sites struct {
	list []site
	text uint64 // bytes of text
}

// Sites returns the run-time sites of the mask.
func (m *Mask) Sites() *Sites { return sitesIn(m.Classes, m.TextSize) }

// Settled returns the sites that are patched once, and have a legal form afterwards.
func (m *Mask) Settled() *Sites { return sitesIn(m.Once, m.TextSize) }

func sitesIn(classes []Class, text uint64) *Sites {
	s := &Sites{text: text}
	for _, c := range classes {
		form := forms[c.Name]
		if form == nil {
			form = anything
		}
		for i, r := range c.Ranges {
			one := site{Range: r, form: form}
			if c.Name == JumpLabel {
				one.target = c.Targets[i]
			}
			s.list = append(s.list, one)
		}
	}
	slices.SortStableFunc(s.list, func(a, b site) int { return cmp.Compare(a.Off, b.Off) })
	// A trampoline that goes straight on is a call site of the table as well.
	s.list = slices.CompactFunc(s.list, func(a, b site) bool { return a.Off == b.Off })
	return s
}

// Odd returns the sites in the whole text that hold no legal form.
func (s *Sites) Odd(text io.ReaderAt) (odd []Range, err error) {
	var buf []byte
	for _, x := range s.list {
		code := slices.Grow(buf[:0], int(x.Len))[:x.Len]
		if n, err := text.ReadAt(code, int64(x.Off)); n < len(code) {
			return nil, err
		}
		if !x.form(x, code, s.text) {
			odd = append(odd, x.Range)
		}
		buf = code
	}
	return odd, nil
}

// Clear overwrites with zeros every site in buf, which begins at byte off of
// the text, that holds a legal form. The others stay as they are, so that they
// show in any comparison, and are returned. Sites that are not wholly in buf are
// not touched.
func (s *Sites) Clear(buf []byte, off uint64) (odd []Range) {
	end := off + uint64(len(buf))
	i, _ := slices.BinarySearchFunc(s.list, off, func(x site, at uint64) int { return cmp.Compare(uint64(x.Off), at) })
	for ; i < len(s.list); i++ {
		x := s.list[i]
		if uint64(x.Off)+uint64(x.Len) > end {
			return odd
		}
		code := buf[uint64(x.Off)-off:][:x.Len]
		if !x.form(x, code, s.text) {
			odd = append(odd, x.Range)
			continue
		}
		clear(code)
	}
	return odd
}

var forms = map[string]func(site, []byte, uint64) bool{JumpLabel: jumpForm, StaticCall: callForm, Trampoline: callForm, RuntimeConst: anything}

// Legal tells whether code is a legal form for the site at r; what was met in a
// step between two of them can be read again.
func (s *Sites) Legal(r Range, code []byte) bool {
	i, ok := slices.BinarySearchFunc(s.list, r.Off, func(x site, at uint32) int { return cmp.Compare(x.Off, at) })
	return ok && s.list[i].Len == r.Len && uint32(len(code)) == r.Len && s.list[i].form(s.list[i], code, s.text)
}

// anything: the constant is an address that boot chose.
func anything(site, []byte, uint64) bool { return true }

// jumpForm: a NOP, or the JMP to the label's target and nowhere else.
func jumpForm(s site, code []byte, _ uint64) bool {
	return textpatch.JumpLabel(uint64(s.Off), code, uint64(s.target))
}

// callForm: a call or jump into kernel text, or one of the forms that do nothing.
// A call into a module or into other memory is none.
func callForm(s site, code []byte, text uint64) bool {
	to, nothing, ok := textpatch.StaticCall(uint64(s.Off), code)
	return ok && (nothing || to < text)
}
