package eventlog

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
)

// Type of an event (Firmware Profile 10.4.1). It is covered by no digest.
type Type uint32

// Types that have a meaning here.
const (
	NoAction    Type = 0x03 // extends nothing
	Separator   Type = 0x04
	EventTag    Type = 0x06 // Linux: command line and initrd, register 9
	IPL         Type = 0x0d // systemd-stub: sections, register 11
	OmitBoot    Type = 0x12
	Application Type = 0x80000003 // a program that firmware loaded
	Action      Type = 0x80000007
)

// firmware are the types that the profile knows for registers 0 to 7.
var firmware = []Type{
	0x00, 0x01, NoAction, Separator, 0x05, EventTag, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, IPL, 0x0e, 0x0f, 0x10, 0x11, OmitBoot, 0x13,
	0x80000001, 0x80000002, Application, 0x80000004, 0x80000005, 0x80000006, Action, 0x80000008, 0x80000009, 0x8000000a, 0x8000000b,
	0x8000000c, 0x8000000d, 0x80000010, 0x800000e0, 0x800000e1, 0x800000e2, 0x800000e3, 0x800000e4,
}

// grammar are the types that a register may have; the others have firmware's.
var grammar = map[int][]Type{
	4:  {NoAction, Separator, Action, OmitBoot, Application},
	8:  {},
	9:  {EventTag},
	11: {IPL},
	12: {EventTag, IPL},
}

// ErrReplay is a log that does not lead to the registers that were quoted.
var ErrReplay = errors.New("event log does not lead to the quoted register")

// ErrGrammar is an event that must not be where it is.
var ErrGrammar = errors.New("unexpected event")

// Replay computes registers of the SHA-256 bank, each 0 to 23, and holds the
// registers' events against the grammar. Events of other registers are not looked at.
func (l *Log) Replay(pcrs ...int) (map[int]Digest, error) {
	values := make(map[int]Digest, len(pcrs))
	for _, i := range pcrs {
		values[i] = Digest{}
		if i == 0 {
			values[0] = Digest{31: l.locality}
		}
	}
	for n := range l.Events {
		e := &l.Events[n]
		v, wanted := values[e.PCR]
		if !wanted {
			continue
		}
		allowed, special := grammar[e.PCR]
		if !special {
			allowed = firmware
		}
		if !slices.Contains(allowed, e.Type) {
			return nil, fmt.Errorf("%w: %d of type %#x in register %d", ErrGrammar, n, uint32(e.Type), e.PCR)
		}
		if e.Type != NoAction {
			values[e.PCR] = sha256.Sum256(append(v[:], e.Digest[:]...))
		}
	}
	return values, nil
}

// Check replays the registers of quoted that pcrs names.
func (l *Log) Check(quoted map[int]Digest, pcrs ...int) error {
	values, err := l.Replay(pcrs...)
	if err != nil {
		return err
	}
	for _, i := range pcrs {
		if v, ok := quoted[i]; !ok || v != values[i] {
			return fmt.Errorf("%w %d: %x, quoted is %x", ErrReplay, i, values[i], v)
		}
	}
	return nil
}

// What firmware says in register 4 beside the programs that it loads (Firmware
// Profile 10.4.4), known by its digest.
var (
	calling   = sha256.Sum256([]byte("Calling EFI Application from Boot Option"))
	returning = sha256.Sum256([]byte("Returning from EFI Application from Boot Option"))
	omit      = sha256.Sum256([]byte("BOOT ATTEMPTS OMITTED"))
	separator = sha256.Sum256([]byte{0, 0, 0, 0})
)

// Applications returns the programs that firmware loaded, in their order: the
// digests of register 4 that are none of firmware's own words. Check must have
// agreed. Which programs may run is the caller's to judge; here one separator must
// come before the first of them, since before it only firmware measures.
func (l *Log) Applications() ([]Digest, error) {
	var programs []Digest
	separators := 0
	for n := range l.Events {
		e := &l.Events[n]
		if e.PCR != 4 || e.Type == NoAction {
			continue
		}
		switch e.Digest {
		case calling, returning, omit:
		case separator:
			if separators++; separators > 1 {
				return nil, fmt.Errorf("%w: %d is a second separator in register 4", ErrGrammar, n)
			}
		default:
			if separators == 0 {
				return nil, fmt.Errorf("%w: %d in register 4 is a program before the separator", ErrGrammar, n)
			}
			programs = append(programs, e.Digest)
		}
	}
	if separators == 0 {
		return nil, fmt.Errorf("%w: register 4 has no separator", ErrGrammar)
	}
	return programs, nil
}

// Digests lists what was extended into a register.
func (l *Log) Digests(pcr int) []Digest {
	var out []Digest
	for n := range l.Events {
		if e := &l.Events[n]; e.PCR == pcr && e.Type != NoAction {
			out = append(out, e.Digest)
		}
	}
	return out
}
