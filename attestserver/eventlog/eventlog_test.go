package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"portcullis/attestserver/eventlog/eventlogtest"
)

var (
	app, kernel = sha256.Sum256([]byte("uki")), sha256.Sum256([]byte("linux"))
	policy      = []int{0, 2, 4, 7, 8, 9, 11, 12}
)

func boot() []eventlogtest.Event {
	return eventlogtest.Boot(app, kernel, [][32]byte{{1}, {2}}, [][32]byte{{3}, {4}})
}

func parse(t testing.TB, events []eventlogtest.Event) *Log {
	t.Helper()
	l, err := Parse(eventlogtest.Encode(events...))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestReplayGivesTheRegisters(t *testing.T) {
	l := parse(t, boot())
	values, err := l.Replay(policy...)
	if err != nil {
		t.Fatal(err)
	}
	extend := func(v Digest, digests ...Digest) Digest {
		for _, d := range digests {
			v = sha256.Sum256(append(v[:], d[:]...))
		}
		return v
	}
	for pcr, want := range map[int]Digest{
		4: extend(Digest{}, calling, separator, app, kernel), 8: {}, 9: extend(Digest{}, Digest{1}, Digest{2}),
		11: extend(Digest{}, Digest{3}, Digest{4}), 12: {},
	} {
		if values[pcr] != want {
			t.Errorf("register %d: %x, want %x", pcr, values[pcr], want)
		}
	}
	if err := l.Check(values, policy...); err != nil {
		t.Error(err)
	}
	programs, err := l.Applications()
	if err != nil || len(programs) != 2 || programs[0] != app || programs[1] != kernel {
		t.Errorf("%x, %v", programs, err)
	}
}

func TestStartupLocality(t *testing.T) {
	start := eventlogtest.Event{Type: 3, Data: append([]byte("StartupLocality\x00"), 3)}
	l := parse(t, append([]eventlogtest.Event{start}, boot()...))
	with, err := l.Replay(0)
	if err != nil {
		t.Fatal(err)
	}
	without, err := parse(t, boot()).Replay(0)
	if err != nil || with[0] == without[0] {
		t.Errorf("the locality is not in register 0, %v", err)
	}
	for name, events := range map[string][]eventlogtest.Event{
		"twice":       append([]eventlogtest.Event{start, start}, boot()...),
		"late":        append(boot(), start),
		"impossible":  append([]eventlogtest.Event{{Type: 3, Data: append([]byte("StartupLocality\x00"), 9)}}, boot()...),
		"with digest": append([]eventlogtest.Event{{Type: 3, Digest: Digest{1}, Data: start.Data}}, boot()...),
	} {
		if _, err := Parse(eventlogtest.Encode(events...)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Each forgery keeps the log well-formed: it fails the replay or the grammar.
func TestAttackForgedLogIsRefused(t *testing.T) {
	honest, err := parse(t, boot()).Replay(policy...)
	if err != nil {
		t.Fatal(err)
	}
	at := func(events []eventlogtest.Event, pcr int, kind uint32) int {
		for i, e := range events {
			if e.PCR == pcr && e.Type == kind {
				return i
			}
		}
		t.Fatalf("no event of type %#x in register %d", kind, pcr)
		return 0
	}
	evil := eventlogtest.Event{PCR: 4, Type: uint32(Application), Digest: Digest{66}}
	for name, row := range map[string]struct {
		change func([]eventlogtest.Event) []eventlogtest.Event
		want   error
	}{
		"a program is left out": {func(e []eventlogtest.Event) []eventlogtest.Event {
			i := at(e, 4, uint32(Application))
			return append(e[:i:i], e[i+1:]...)
		}, ErrReplay},
		"a program is put in": {func(e []eventlogtest.Event) []eventlogtest.Event { return append(e, evil) }, ErrReplay},
		"a digest is changed": {func(e []eventlogtest.Event) []eventlogtest.Event {
			e[at(e, 11, uint32(IPL))].Digest[0] ^= 1
			return e
		}, ErrReplay},
		"a program is declared to extend nothing": {func(e []eventlogtest.Event) []eventlogtest.Event {
			i := at(e, 4, uint32(Application))
			e[i].Type, e[i].Digest = uint32(NoAction), Digest{}
			return e
		}, ErrReplay},
		"two events change places": {func(e []eventlogtest.Event) []eventlogtest.Event {
			i := at(e, 9, uint32(EventTag))
			e[i], e[i+1] = e[i+1], e[i]
			return e
		}, ErrReplay},
		"a program is called something else": {func(e []eventlogtest.Event) []eventlogtest.Event {
			e[at(e, 4, uint32(Application))].Type = 0x80000008
			return e
		}, ErrGrammar},
		"a type that nobody knows": {func(e []eventlogtest.Event) []eventlogtest.Event {
			e[at(e, 7, 0x80000001)].Type = 0x90000000
			return e
		}, ErrGrammar},
		"a boot loader's register is used": {func(e []eventlogtest.Event) []eventlogtest.Event {
			return append(e, eventlogtest.Event{PCR: 8, Type: uint32(IPL), Digest: Digest{1}})
		}, ErrGrammar},
	} {
		if err := parse(t, row.change(boot())).Check(honest, policy...); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
	}
	// Whoever really ran another program has an honest log of it, whatever it calls it.
	for _, kind := range []Type{Application, Action, OmitBoot, 0x80000004} {
		lying := evil
		lying.Type, lying.Data = uint32(kind), []byte("Calling EFI Application from Boot Option")
		programs, err := parse(t, append(boot(), lying)).Applications()
		if err != nil || len(programs) != 3 || programs[2] != lying.Digest {
			t.Errorf("a program called %#x: %x, %v", uint32(kind), programs, err)
		}
	}
	for name, events := range map[string][]eventlogtest.Event{
		"before the separator": append([]eventlogtest.Event{evil}, boot()...),
		"a second separator":   append(boot(), eventlogtest.Said(4, 4, make([]byte, 4))),
		"no separator":         {evil},
		"an error's separator": {eventlogtest.Said(4, 4, []byte{1, 0, 0, 0})},
	} {
		if _, err := parse(t, events).Applications(); !errors.Is(err, ErrGrammar) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMalformedLogs(t *testing.T) {
	good := eventlogtest.Encode(boot()...)
	edit := func(at int, b ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], b)
		return out
	}
	const spec = 32 // where the header's own data begins
	first := spec + int(binary.LittleEndian.Uint32(good[28:]))
	for name, b := range map[string][]byte{
		"empty": nil, "no header": good[first:], "cut off": good[:len(good)-1], "too long": make([]byte, MaxLog+1),
		"register of the header": edit(0, 1), "type of the header": edit(4, 4), "signature": edit(spec, 'X'),
		"size of SHA-256": edit(spec+16+8+4+4+2, 20), "SHA-1 twice": edit(spec+16+8+4+4, 4, 0, 20, 0), "no bank": edit(spec+16+8, 0),
		"too many banks": edit(spec+16+8, 200), "header too long": edit(28, 255),
		"register 24": edit(first, 24), "one digest only": edit(first+8, 1), "many digests": edit(first+8, 255, 255, 255, 255),
		"unknown bank": edit(first+12, 9), "a bank twice": edit(first+12+2+20, 4), "huge data": edit(first+12+2+20+2+32, 255, 255, 255, 127),
	} {
		if _, err := Parse(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(good); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(eventlogtest.Encode(boot()...))
	f.Add(eventlogtest.Encode(eventlogtest.Event{Type: 3, Data: append([]byte("StartupLocality\x00"), 3)}))
	f.Add(eventlogtest.Encode())
	f.Add([]byte{0, 0, 0, 0, 3})
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("an error without its kind: %v", err)
			}
			return
		}
		if values, err := l.Replay(policy...); err == nil {
			if err := l.Check(values, policy...); err != nil {
				t.Error(err)
			}
		}
		programs, _ := l.Applications()
		if len(programs) > len(l.Digests(4)) {
			t.Error("more programs than were measured")
		}
	})
}
