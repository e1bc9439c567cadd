// Package fingerprint keeps what one PC is made of: a Merkle tree with a leaf for
// each part, enrolled over three boots and never changed afterwards except by an
// operator's signed approval. What differs is a drift, which is fatal, for review,
// or ignored. attestserver/expect judges with it, attestserver/server shows it and
// takes approvals, cmd/portcullis verifies openings; it touches nothing but the
// References that it is given.
package fingerprint

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"encoding/hex"

	"portcullis/attestserver/protocol"
)

// ClassMemory is the class of the one part that HwData carries beside its list:
// the memory that the kernel counts, slot "kib".
const (
	ClassMemory = "memory"
	slotKiB     = "kib"
)

// Part is one part of the machine.
type Part struct {
	Class string `json:"class"`
	Slot  string `json:"slot"`
	Value string `json:"value"`
	// Unstable parts differed between the enrolling boots. They are not compared
	// and have no leaf.
	Unstable bool `json:"unstable,omitempty"`
}

func (p Part) key() string { return p.Class + "\x00" + p.Slot }

func (p Part) String() string { return p.Class + " " + p.Slot }

// Parts makes the list of an answer: sorted, each place once. A second part at
// one place gets a number.
func Parts(d *protocol.HwData) []Part {
	out := make([]Part, 0, len(d.Components)+1)
	for _, c := range d.Components {
		out = append(out, Part{Class: c.Class, Slot: c.Slot, Value: c.Value})
	}
	out = append(out, Part{Class: ClassMemory, Slot: slotKiB, Value: strconv.FormatUint(d.MemoryKiB, 10)})
	order(out)
	seen := map[string]int{}
	for i := range out {
		k := out[i].key()
		if seen[k]++; seen[k] > 1 {
			out[i].Slot += fmt.Sprintf(" #%d", seen[k])
		}
	}
	order(out)
	return out
}

func order(list []Part) {
	slices.SortFunc(list, func(a, b Part) int {
		return cmp.Or(strings.Compare(a.Class, b.Class), strings.Compare(a.Slot, b.Slot), strings.Compare(a.Value, b.Value))
	})
}

// Tolerances of what is measured: firmware and kernel reserve a little more or
// less memory at each boot, and a DIMM is more than a 32nd of it; the kernel's
// clock, against which the counter is held, is calibrated at each boot.
const (
	memoryTolerance = 32
	tscTolerance    = 16
	pufTolerance    = 5 // a fifth of the bits
)

// same tells whether two values of a class stand for one part.
func same(class, a, b string) bool {
	if a == b {
		return true
	}
	switch class {
	case ClassMemory:
		return near(a, b, memoryTolerance)
	case protocol.HwTSC:
		return near(a, b, tscTolerance)
	case protocol.HwPUF:
		return alike(a, b)
	}
	return false
}

func near(a, b string, part uint64) bool {
	x, err := strconv.ParseUint(a, 10, 64)
	y, yerr := strconv.ParseUint(b, 10, 64)
	return err == nil && yerr == nil && max(x, y)-min(x, y) <= x/part
}

func alike(a, b string) bool {
	x, err := hex.DecodeString(a)
	y, yerr := hex.DecodeString(b)
	if err != nil || yerr != nil || len(x) != len(y) || len(x) == 0 {
		return false
	}
	n := 0
	for i := range x {
		n += bits.OnesCount8(x[i] ^ y[i])
	}
	return n <= 8*len(x)/pufTolerance
}
