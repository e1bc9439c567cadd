package fingerprint

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
)

// Level says what a drift means.
type Level int

// Levels, the mildest first; the zero value is not one of them.
const (
	Ignored Level = iota + 1 // fields that mean nothing
	Review                   // an operator should look: the verdict warns until it is approved
	Fatal                    // another machine, or another part in it
)

var levels = map[Level]string{Ignored: "ignored", Review: "review", Fatal: "fatal"}

func (l Level) String() string { return levels[l] }

// MarshalJSON writes the word.
func (l Level) MarshalJSON() ([]byte, error) { return json.Marshal(levels[l]) }

// UnmarshalJSON reads one of the words.
func (l *Level) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	for k, v := range levels {
		if v == s {
			*l = k
			return nil
		}
	}
	return fmt.Errorf("%.40q is no level of a drift", s)
}

// Kinds of a change.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Change is one part that is not as it was enrolled.
type Change struct {
	Kind  string `json:"kind"` // added, removed, changed
	Class string `json:"class"`
	Slot  string `json:"slot"`
	Was   string `json:"was,omitempty"`
	Is    string `json:"is,omitempty"`
	Level Level  `json:"level"`
	// Within: it changed while the session ran, and not between two boots.
	Within bool `json:"within_session,omitempty"`
}

func (c Change) String() string { return c.Class + " " + c.Slot + " " + c.Kind }

// level is what a change of a part means when it comes between two boots.
func level(class, slot string) Level {
	switch class {
	case protocol.HwDMI:
		switch {
		case slot == "board_asset_tag" || slot == "chassis_asset_tag":
			return Ignored // whoever has a screwdriver and a label writes them
		case strings.HasPrefix(slot, "bios_") || strings.HasPrefix(slot, "ec_"):
			return Review
		}
	case protocol.HwCPU:
		if slot == protocol.SlotMicrocode {
			return Review
		}
	case protocol.HwEFI:
		switch slot {
		case "KEK", "db", "dbx":
			return Review // makers change them too
		}
	case protocol.HwDIMM, ClassMemory, protocol.HwFirmware:
		return Review
	}
	if learnable[class] {
		return Review
	}
	return Fatal
}

// learnable are the classes of which nobody knows whether a machine repeats them
// at each boot: where the enrolling boots differ, the part is unstable.
var learnable = map[string]bool{protocol.HwACPI: true, protocol.HwMemmap: true, protocol.HwCache: true,
	protocol.HwTSC: true, protocol.HwPUF: true}

// measured are those that carry noise: within a session they mean no more than
// between boots.
var measured = map[string]bool{protocol.HwTSC: true, protocol.HwPUF: true}

// late are the classes that a kernel finds when user space loads their drivers.
// The first question comes earlier.
var late = map[string]bool{protocol.HwUSB: true, protocol.HwThunderbolt: true, protocol.HwBlock: true,
	protocol.HwFirmware: true, protocol.HwNIC: true, protocol.HwEFI: true}

// lasting are those among them whose parts, once there, stay as they are while
// the machine runs.
var lasting = map[string]bool{protocol.HwEFI: true}

// drivers are the classes of which another kernel, with other drivers, may show
// other parts of the same machine: with an image that the fingerprint was not
// seen with yet they are for review.
var drivers = map[string]bool{protocol.HwUSB: true, protocol.HwThunderbolt: true, protocol.HwBlock: true, protocol.HwFirmware: true, protocol.HwEFI: true}

// compare lists what differs, sorted by class and slot. Unstable parts and
// ignored fields are left out.
func compare(was, is []Part) (out []Change) {
	old := make(map[string]Part, len(was))
	for _, p := range was {
		old[p.key()] = p
	}
	for _, p := range is {
		o, ok := old[p.key()]
		delete(old, p.key())
		l := level(p.Class, p.Slot)
		switch {
		case l == Ignored || o.Unstable:
		case !ok:
			out = append(out, Change{Kind: Added, Class: p.Class, Slot: p.Slot, Is: p.Value, Level: l})
		case !same(p.Class, o.Value, p.Value):
			out = append(out, Change{Kind: Changed, Class: p.Class, Slot: p.Slot, Was: o.Value, Is: p.Value, Level: l})
		}
	}
	for _, p := range old {
		if l := level(p.Class, p.Slot); l != Ignored && !p.Unstable {
			out = append(out, Change{Kind: Removed, Class: p.Class, Slot: p.Slot, Was: p.Value, Level: l})
		}
	}
	slices.SortFunc(out, func(a, b Change) int {
		return strings.Compare(a.Class+"\x00"+a.Slot, b.Class+"\x00"+b.Slot)
	})
	return out
}
