package card

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"testing/fstest"
)

func release(n byte) Release { return Release{Sequence: uint64(n), Root: [32]byte{n, n, n}} }

func reason(t *testing.T, err error) string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("no typed refusal: %v", err)
	}
	return e.Reason
}

func onTrial(t *testing.T, attempts int) State {
	t.Helper()
	s, err := NewState(release(1)).WithTrial(Installed{Slot: SlotB, Release: release(2)})
	if err != nil {
		t.Fatal(err)
	}
	s.Trial.Attempts = attempts
	return s
}

func TestBootDecisions(t *testing.T) {
	fresh := NewState(release(1))
	for name, c := range map[string]struct {
		state State
		own   Release
		want  Decision
		trial bool // there is one afterwards
		left  string
	}{
		"the only release":                 {fresh, release(1), Decision{Slot: SlotA}, false, ""},
		"first attempt":                    {onTrial(t, 0), release(2), Decision{Slot: SlotB, Trial: true, Attempt: 1, Write: true}, true, ""},
		"last attempt":                     {onTrial(t, 2), release(2), Decision{Slot: SlotB, Trial: true, Attempt: 3, Write: true}, true, ""},
		"one too many":                     {onTrial(t, 3), release(2), Decision{Slot: SlotB, Trial: true, Attempt: 3, Write: true, Back: true, Reason: ReasonTrialAttempts}, false, ReasonTrialAttempts},
		"staged, the firmware not told":    {onTrial(t, 0), release(1), Decision{Slot: SlotA}, true, ""},
		"firmware fell back":               {onTrial(t, 1), release(1), Decision{Slot: SlotA, Write: true, Reason: ReasonTrialFirmware}, false, ReasonTrialFirmware},
		"committed":                        {onTrial(t, 1).Committed(), release(2), Decision{Slot: SlotB}, false, ""},
		"an update with the same root":     {sameRoot(t), Release{Sequence: 2, Root: release(1).Root}, Decision{Slot: SlotB, Trial: true, Attempt: 1, Write: true}, true, ""},
		"below an update of the same root": {sameRoot(t), release(1), Decision{Slot: SlotA}, true, ""},
	} {
		before, _ := c.state.Encode()
		next, got, err := c.state.Boot(c.own)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v %v, want %+v", name, got, err, c.want)
		}
		if (next.Trial != nil) != c.trial || next.LastFailure != c.left {
			t.Errorf("%s: left %s (%q)", name, next, next.LastFailure)
		}
		if after, _ := c.state.Encode(); !bytes.Equal(before, after) {
			t.Errorf("%s: the state that came in was changed", name)
		}
		if _, err := next.Encode(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range map[string]State{"old state": fresh, "after commit": onTrial(t, 1).Committed(), "on trial": onTrial(t, 1)} {
		own := release(3)
		if name == "after commit" {
			own = release(1) // the boot partition of the old release put back by hand
		}
		if _, _, err := s.Boot(own); reason(t, err) != ReasonSlotUnknown {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func sameRoot(t *testing.T) State {
	s, err := NewState(release(1)).WithTrial(Installed{Slot: SlotB, Release: Release{Sequence: 2, Root: release(1).Root}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTrialRefusals(t *testing.T) {
	s := NewState(release(1))
	for name, i := range map[string]Installed{
		"over the release in use": {SlotA, release(2)}, "the release in use": {SlotB, release(1)}, "no slot": {"", release(2)},
		"no sequence": {SlotB, Release{Root: [32]byte{1}}}, "sequence too high": {SlotB, Release{Sequence: MaxSequence + 1}},
	} {
		if next, err := s.WithTrial(i); err == nil {
			t.Errorf("%s: %s", name, next)
		}
	}
}

// Every single changed byte of a copy is seen.
func TestChangedStateIsRefused(t *testing.T) {
	s := onTrial(t, 2)
	s.LastFailure = ReasonTrialUnhealthy
	good, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeState(good)
	if err != nil || back.String() != s.String() || back.LastFailure != s.LastFailure || back.Trial.Release != s.Trial.Release {
		t.Fatalf("%s %v", back, err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if s, err := DecodeState(bad); err == nil {
			t.Errorf("byte %d changed: read as %s", i, s)
		}
	}
	for n := range good { // torn writes over zeros
		torn := make([]byte, SectorSize)
		copy(torn, good[:n])
		if s, err := DecodeState(torn); err == nil {
			t.Errorf("torn after byte %d: read as %s", n, s)
		}
	}
	if _, err := DecodeState(good[:100]); err == nil {
		t.Error("a short copy was read")
	}
}

func TestNewestCopyWins(t *testing.T) {
	encode := func(gen uint64) []byte {
		s := NewState(release(byte(gen)))
		s.Generation = gen
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	none := make([]byte, SectorSize)
	for _, c := range []struct {
		first, second []byte
		gen           uint64
		next          int
	}{{encode(1), none, 1, 1}, {none, encode(1), 1, 0}, {encode(4), encode(5), 5, 0}, {encode(6), encode(5), 6, 1}, {encode(5), encode(5), 5, 1}} {
		s, next, err := newestState(c.first, c.second)
		if err != nil || s.Generation != c.gen || next != c.next {
			t.Errorf("generation %d, next %d, %v; want %d, %d", s.Generation, next, err, c.gen, c.next)
		}
	}
	if _, _, err := newestState(none, none); reason(t, err) != ReasonStateUnreadable {
		t.Errorf("%v", err)
	}
}

func TestAutobootByTheFirmwaresRules(t *testing.T) {
	for name, c := range map[string]struct {
		text         string
		normal, once int
		ok           bool
	}{
		"ours, a":          {string(EncodeAutoboot(SlotA)), 2, 3, true},
		"ours, b":          {string(EncodeAutoboot(SlotB)), 3, 2, true},
		"no section":       {"boot_partition=2\n", 2, 2, true},
		"later lines win":  {"[all]\nboot_partition=2\nboot_partition=3", 3, 3, true},
		"none is nobody":   {"[none]\nboot_partition=3\n[all]\nboot_partition=2", 2, 2, true},
		"order of section": {"[tryboot]\nboot_partition=3\n[all]\nboot_partition=2", 2, 3, true},
		"comments, CRLF":   {"# hello\r\n[all] # all\r\nboot_partition = 3 # here\r\n", 3, 3, true},
		"unknown keys":     {"[all]\narm_64bit=1\nboot_partition=2", 2, 2, true},
		"empty":            {"", 0, 0, false},
		"tryboot only":     {"[tryboot]\nboot_partition=3", 0, 0, false},
		"no number":        {"boot_partition=two", 0, 0, false},
		"open section":     {"[all\nboot_partition=2", 0, 0, false},
		"no value":         {"boot_partition", 0, 0, false},
		"too large":        {string(bytes.Repeat([]byte("\n"), 512)) + "boot_partition=2", 0, 0, false},
	} {
		a, err := ParseAutoboot([]byte(c.text))
		if (err == nil) != c.ok || err == nil && (a.Boot(false) != c.normal || a.Boot(true) != c.once) {
			t.Errorf("%s: %+v %v", name, a, err)
		}
		if err != nil && reason(t, err) != ReasonAutoboot {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, _ := ParseAutoboot(EncodeAutoboot(SlotB))
	if s, err := a.Slot(); err != nil || s != SlotB || !a.TrybootAB {
		t.Errorf("%+v %q %v", a, s, err)
	}
	if _, err := (Autoboot{Partition: 4}).Slot(); reason(t, err) != ReasonAutoboot {
		t.Errorf("%v", err)
	}
}

// A torn write between the two files starts one of the slots, never nothing.
func TestTornAutobootStartsASlot(t *testing.T) {
	for _, from := range []Slot{SlotA, SlotB} {
		was, is := EncodeAutoboot(from), EncodeAutoboot(from.Other())
		if len(was) != AutobootSize || len(is) != AutobootSize {
			t.Fatalf("%d and %d bytes", len(was), len(is))
		}
		for n := range is {
			a, err := ParseAutoboot(append(bytes.Clone(is[:n]), was[n:]...))
			if err != nil {
				t.Fatalf("torn after byte %d: %v", n, err)
			}
			if _, err := a.Slot(); err != nil {
				t.Fatalf("torn after byte %d: %v", n, err)
			}
		}
	}
}

func TestFirmwaresPartition(t *testing.T) {
	cell := func(n uint32) fstest.MapFS {
		return fstest.MapFS{bootloaderPartition: {Data: binary.BigEndian.AppendUint32(nil, n)}}
	}
	if err := CheckFirmware(SlotA, fstest.MapFS{}); err != nil {
		t.Errorf("firmware that says nothing: %v", err)
	}
	if err := CheckFirmware(SlotB, cell(PartBootB)); err != nil {
		t.Error(err)
	}
	if err := CheckFirmware(SlotB, cell(PartBootA)); reason(t, err) != ReasonSlotPartition {
		t.Errorf("the other slot's partition: %v", err)
	}
	short := fstest.MapFS{bootloaderPartition: {Data: []byte{2}}}
	if err := CheckFirmware(SlotA, short); reason(t, err) != ReasonSlotPartition {
		t.Errorf("half a cell: %v", err)
	}
}

func FuzzState(f *testing.F) {
	s := NewState(release(1))
	good, _ := s.Encode()
	f.Add(good)
	s, _ = s.WithTrial(Installed{Slot: SlotB, Release: release(2)})
	s.LastFailure = ReasonTrialAttempts
	good, _ = s.Encode()
	f.Add(good)
	f.Add([]byte(stateMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if err != nil {
			return
		}
		for _, own := range []Release{s.Active.Release, release(9)} {
			next, _, err := s.Boot(own)
			if err != nil {
				continue
			}
			if _, err := next.Encode(); err != nil {
				t.Errorf("%s became %v", s, err)
			}
		}
	})
}

func FuzzAutoboot(f *testing.F) {
	f.Add(EncodeAutoboot(SlotA))
	f.Add([]byte("[none]\nboot_partition=1\n[tryboot]\ntryboot_a_b=1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseAutoboot(b); err == nil && a.Boot(false) == 0 {
			t.Errorf("%+v starts nothing", a)
		}
	})
}
