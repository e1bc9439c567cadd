package session

import "slices"

// span is a half-open range of bytes.
type span struct{ from, to int64 }

// cover is a set of bytes as disjoint, sorted spans that do not touch.
type cover []span

// add puts [from, to) into the set.
func (c *cover) add(from, to int64) {
	if from >= to {
		return
	}
	s := *c
	// first is the first span that touches or follows the new one, last is behind the last that touches it.
	first, _ := slices.BinarySearchFunc(s, from, func(x span, at int64) int {
		if x.to < at {
			return -1
		}
		return 1
	})
	last := first
	for last < len(s) && s[last].from <= to {
		from, to = min(from, s[last].from), max(to, s[last].to)
		last++
	}
	*c = slices.Replace(s, first, last, span{from, to})
}

// total returns the number of bytes in the set.
func (c cover) total() int64 {
	var n int64
	for _, s := range c {
		n += s.to - s.from
	}
	return n
}
