package ktextmask

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"portcullis/images/manifest"
)

// RunTime returns the ranges that are left out of every comparison, sorted and
// without overlap.
func (m *Mask) RunTime() []Range {
	var all []Range
	for _, c := range m.Classes {
		all = append(all, c.Ranges...)
	}
	return merge(all)
}

// zeroAll zeroes what is patched at run time or at boot.
func (m *Mask) zeroAll(text []byte) {
	Zero(text, 0, m.RunTime())
	Zero(text, 0, m.Boot)
}

// Summary counts what is left out, for the manifest; file is the encoded mask.
func (m *Mask) Summary(file []byte) manifest.KernelTextMask {
	sum := sha256.Sum256(file)
	s := manifest.KernelTextMask{Sites: len(m.Sites().list), Total: int64(m.TextSize), SHA256: hex.EncodeToString(sum[:])}
	for _, r := range m.RunTime() {
		s.Bytes += int(r.Len)
	}
	return s
}

// Zero overwrites with zeros what ranges cover of buf, which begins at byte off
// of the text. ranges must be sorted and must not overlap.
func Zero(buf []byte, off uint64, ranges []Range) {
	each(buf, off, ranges, func(b []byte) { clear(b) })
}

// each calls do with every piece of buf that ranges cover, in order.
func each(buf []byte, off uint64, ranges []Range, do func([]byte)) {
	end := off + uint64(len(buf))
	i, _ := slices.BinarySearchFunc(ranges, off, func(r Range, at uint64) int {
		return cmp.Compare(uint64(r.Off)+uint64(r.Len), at+1)
	})
	for ; i < len(ranges); i++ {
		from, to := uint64(ranges[i].Off), uint64(ranges[i].Off)+uint64(ranges[i].Len)
		if from >= end {
			return
		}
		do(buf[max(from, off)-off : min(to, end)-off])
	}
}

// merge sorts ranges and joins those that touch or overlap.
func merge(in []Range) []Range {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b Range) int { return cmp.Or(cmp.Compare(a.Off, b.Off), cmp.Compare(a.Len, b.Len)) })
	out := in[:0]
	for _, r := range in {
		if n := len(out); n > 0 && uint64(out[n-1].Off)+uint64(out[n-1].Len) >= uint64(r.Off) {
			last := &out[n-1]
			last.Len = max(last.Off+last.Len, r.Off+r.Len) - last.Off
			continue
		}
		out = append(out, r)
	}
	return out
}
