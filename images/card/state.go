package card

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"regexp"
)

// MaxAttempts is how often a new release may start without being committed.
const MaxAttempts = 3

// Release names what runs by its content: the root image it was built with and
// the sequence in its initramfs. Two releases may share a root image, never both.
type Release struct {
	Sequence uint64 // 1 to 1<<31
	Root     [32]byte
}

// Installed is a release in a slot.
type Installed struct {
	Slot Slot
	Release
}

// Trial is a release that is in its slot but has not proven itself.
type Trial struct {
	Installed
	Attempts int // boots of it so far, 0 to MaxAttempts
}

// State says which slot is started and which one is on trial. It is plain data on
// a plain partition: whoever writes the card can change it. What it protects is
// the way back from a bad update; old releases are refused by the chip.
type State struct {
	Generation  uint64 // of the copy it was read from; SetState counts
	Active      Installed
	Trial       *Trial // nil: none
	LastFailure string // typed reason why the last trial was dropped, "" = none
}

// NewState is the state of a freshly written card.
func NewState(r Release) State {
	return State{Generation: 1, Active: Installed{Slot: SlotA, Release: r}}
}

// Decision is what pi-init does with the state it found.
type Decision struct {
	Slot    Slot   // whose system this boot uses
	Trial   bool   // it is not committed yet
	Attempt int    // of the trial, 1 to MaxAttempts; 0 without one
	Write   bool   // the returned state goes onto the card before anything else is tried
	Back    bool   // no boot: Conf.Drop, then restart into the active slot
	Reason  string // why a trial was dropped by this decision
}

// Boot decides for a boot of the release own. It does not change s.
func (s State) Boot(own Release) (State, Decision, error) {
	t := s.Trial
	switch {
	case t != nil && t.Release == own:
		if t.Attempts >= MaxAttempts {
			return s.Dropped(ReasonTrialAttempts), Decision{Slot: t.Slot, Trial: true, Attempt: t.Attempts, Write: true, Back: true, Reason: ReasonTrialAttempts}, nil
		}
		next := s
		next.Trial = &Trial{Installed: t.Installed, Attempts: t.Attempts + 1}
		return next, Decision{Slot: t.Slot, Trial: true, Attempt: t.Attempts + 1, Write: true}, nil
	case s.Active.Release != own:
		return s, Decision{}, refuse(ReasonSlotUnknown, "this is release %d with root %x…; the card knows %s", own.Sequence, own.Root[:4], s)
	case t != nil && t.Attempts > 0:
		// The trial was started and this is not it: the firmware fell back, or a
		// person changed autoboot.txt.
		return s.Dropped(ReasonTrialFirmware), Decision{Slot: s.Active.Slot, Write: true, Reason: ReasonTrialFirmware}, nil
	}
	return s, Decision{Slot: s.Active.Slot}, nil
}

// WithTrial is the state in which the release in t is started next.
func (s State) WithTrial(t Installed) (State, error) {
	if t.Slot != s.Active.Slot.Other() || t.Release == s.Active.Release {
		return s, fmt.Errorf("release %d in slot %s cannot be on trial beside %s", t.Sequence, t.Slot, s)
	}
	s.Trial, s.LastFailure = &Trial{Installed: t}, ""
	return s, s.check()
}

// Committed is the state in which the trial has become the active release.
func (s State) Committed() State {
	if s.Trial != nil {
		s.Active, s.Trial, s.LastFailure = s.Trial.Installed, nil, ""
	}
	return s
}

// Dropped is the state without its trial, and why.
func (s State) Dropped(reason string) State {
	if s.Trial != nil {
		s.Trial, s.LastFailure = nil, reason
	}
	return s
}

func (s State) String() string {
	line := fmt.Sprintf("release %d active in slot %s", s.Active.Sequence, s.Active.Slot)
	if s.Trial != nil {
		line += fmt.Sprintf(", release %d on trial in slot %s (started %d times)", s.Trial.Sequence, s.Trial.Slot, s.Trial.Attempts)
	}
	return line
}

// failureName is what LastFailure may hold: a typed reason.
var failureName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// MaxSequence is the highest release sequence: the chip counts up to it in 32 bits.
const MaxSequence = 1 << 31

func (s State) check() error {
	switch {
	case s.Generation == 0:
		return fmt.Errorf("slot state: generation 0")
	case s.LastFailure != "" && !failureName.MatchString(s.LastFailure):
		return fmt.Errorf("slot state: last failure %.80q is no typed reason", s.LastFailure)
	}
	if err := s.Active.check(); err != nil {
		return fmt.Errorf("slot state: active: %w", err)
	}
	if t := s.Trial; t != nil {
		if err := t.check(); err != nil {
			return fmt.Errorf("slot state: trial: %w", err)
		}
		switch {
		case t.Slot == s.Active.Slot:
			return fmt.Errorf("slot state: the trial is in the active slot %s", t.Slot)
		case t.Release == s.Active.Release:
			return fmt.Errorf("slot state: the trial is the active release %d", t.Sequence)
		case t.Attempts < 0 || t.Attempts > MaxAttempts:
			return fmt.Errorf("slot state: %d attempts, 0 to %d are possible", t.Attempts, MaxAttempts)
		}
	}
	return nil
}

func (i Installed) check() error {
	switch {
	case i.Slot != SlotA && i.Slot != SlotB:
		return fmt.Errorf("slot %q", i.Slot)
	case i.Sequence < 1 || i.Sequence > MaxSequence:
		return fmt.Errorf("sequence %d is not between 1 and %d", i.Sequence, uint64(MaxSequence))
	}
	return nil
}

// A copy is one sector, little endian; what is not listed is zero:
//
//	0 magic | 8 generation u64 | 16 active | 64 trial | 112 attempts u8, 1 if there is a trial u8
//	128 last failure, 64 bytes with a final NUL | 508 CRC-32C of the bytes before it
//	a release: 0 slot u8 ('a', 'b') | 8 sequence u64 | 16 root
const (
	stateMagic   = "PCSLOT1\n"
	atGeneration = 8
	atActive     = 16
	atTrial      = 64
	atAttempts   = 112
	atHasTrial   = 113
	atFailure    = 128
	failureSize  = 64
	atSum        = SectorSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode returns the sector of a valid state.
func (s State) Encode() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	b := make([]byte, SectorSize)
	copy(b, stateMagic)
	binary.LittleEndian.PutUint64(b[atGeneration:], s.Generation)
	s.Active.put(b[atActive:])
	if s.Trial != nil {
		s.Trial.put(b[atTrial:])
		b[atAttempts], b[atHasTrial] = byte(s.Trial.Attempts), 1
	}
	copy(b[atFailure:], s.LastFailure)
	binary.LittleEndian.PutUint32(b[atSum:], crc32.Checksum(b[:atSum], castagnoli))
	return b, nil
}

func (i Installed) put(b []byte) {
	b[0] = i.Slot[0]
	binary.LittleEndian.PutUint64(b[8:], i.Sequence)
	copy(b[16:48], i.Root[:])
}

func installed(b []byte) Installed {
	return Installed{Slot: Slot(b[:1]), Release: Release{Sequence: binary.LittleEndian.Uint64(b[8:]), Root: [32]byte(b[16:48])}}
}

// DecodeState reads one sector. It accepts only what Encode writes.
func DecodeState(b []byte) (State, error) {
	if len(b) != SectorSize {
		return State{}, fmt.Errorf("slot state: %d bytes, a copy has %d", len(b), SectorSize)
	}
	if string(b[:len(stateMagic)]) != stateMagic {
		return State{}, fmt.Errorf("slot state: no copy of it is here")
	}
	if binary.LittleEndian.Uint32(b[atSum:]) != crc32.Checksum(b[:atSum], castagnoli) {
		return State{}, fmt.Errorf("slot state: checksum does not agree")
	}
	s := State{Generation: binary.LittleEndian.Uint64(b[atGeneration:]), Active: installed(b[atActive:])}
	if b[atHasTrial] != 0 {
		s.Trial = &Trial{Installed: installed(b[atTrial:]), Attempts: int(b[atAttempts])}
	}
	name, _, _ := bytes.Cut(b[atFailure:atFailure+failureSize], []byte{0})
	s.LastFailure = string(name)
	again, err := s.Encode()
	if err != nil {
		return State{}, err
	}
	if !bytes.Equal(again, b) {
		return State{}, fmt.Errorf("slot state: bytes that mean nothing are not zero")
	}
	return s, nil
}

// newestState picks the valid copy of the higher generation and says which copy
// the next write takes: the other one.
func newestState(first, second []byte) (s State, next int, err error) {
	a, errA := DecodeState(first)
	b, errB := DecodeState(second)
	switch {
	case errA != nil && errB != nil:
		return State{}, 0, refuse(ReasonStateUnreadable, "first copy: %v; second copy: %v", errA, errB)
	case errB != nil || errA == nil && a.Generation >= b.Generation:
		return a, 1, nil
	}
	return b, 0, nil
}

// StateImage is the content of StateFile on a freshly written card.
func StateImage(r Release) ([]byte, error) {
	sector, err := NewState(r).Encode()
	if err != nil {
		return nil, err
	}
	b := make([]byte, StateSize)
	copy(b, sector)
	return b, nil
}
