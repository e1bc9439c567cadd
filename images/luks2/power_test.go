package luks2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// recorder remembers every write and where the device was asked to have it all.
type recorder struct {
	memory
	windows [][]write // one for each Sync, and what came after the last
}

type write struct {
	off  int64
	data []byte
}

func (r *recorder) WriteAt(b []byte, off int64) (int, error) {
	if len(r.windows) == 0 {
		r.windows = make([][]write, 1)
	}
	last := &r.windows[len(r.windows)-1]
	*last = append(*last, write{off, bytes.Clone(b)})
	return r.memory.WriteAt(b, off)
}

func (r *recorder) Sync() error {
	r.windows = append(r.windows, nil)
	return nil
}

// cuts calls f with what the device holds after a power cut, for every sector that
// can be the last one of a window, for random subsets of a window's sectors (a
// device may write them in any order), and with a torn sector in each.
func (r *recorder) cuts(before memory, f func(name string, d memory)) {
	random := rand.New(rand.NewPCG(1, 2))
	base := bytes.Clone(before)
	for w, window := range r.windows {
		var sectors []write
		for _, one := range window {
			for i := 0; i < len(one.data); i += 512 {
				sectors = append(sectors, write{one.off + int64(i), one.data[i:min(i+512, len(one.data))]})
			}
		}
		step := max(1, len(sectors)/32)
		for n := 0; n <= len(sectors); n += step {
			d := bytes.Clone(base)
			for _, s := range sectors[:n] {
				copy(d[s.off:], s.data)
			}
			if n < len(sectors) {
				tear(random, d, sectors[n])
			}
			f(fmt.Sprintf("window %d, sector %d of %d", w, n, len(sectors)), d)
			d = bytes.Clone(base)
			for _, s := range sectors[n:] {
				copy(d[s.off:], s.data)
			}
			f(fmt.Sprintf("window %d, last sectors first, %d of %d missing", w, n, len(sectors)), d)
		}
		for n := range 10 {
			d := bytes.Clone(base)
			for _, s := range sectors {
				switch random.IntN(3) {
				case 0:
					copy(d[s.off:], s.data)
				case 1:
					tear(random, d, s)
				}
			}
			f(fmt.Sprintf("window %d, subset %d", w, n), d)
		}
		for _, s := range sectors {
			copy(base[s.off:], s.data)
		}
	}
}

// tear writes the beginning of a sector and leaves noise in the middle of the rest.
func tear(random *rand.Rand, d memory, s write) {
	n := random.IntN(len(s.data))
	copy(d[s.off:], s.data[:n])
	for i := n; i < min(n+16, len(s.data)); i++ {
		d[s.off+int64(i)] = byte(random.Uint32())
	}
}

// whole reads a device after a cut, repairs it, and opens it.
func whole(t *testing.T, name string, d memory, key []byte) *Header {
	t.Helper()
	h, _, err := Repair(d, int64(len(d)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	again, health, err := Read(d, int64(len(d)))
	if err != nil || !health.Good() || !bytes.Equal(again.JSON(), h.JSON()) {
		t.Fatalf("%s: repaired: %v, %+v", name, err, health)
	}
	got, _, err := again.Unlock(d, chipPass)
	if err != nil || !bytes.Equal(got, key) {
		t.Fatalf("%s: %v", name, err)
	}
	return again
}

func tokenIs(h *Header, data string) bool {
	tokens := h.Tokens()
	return len(tokens) == 1 && bytes.Contains(tokens[0].JSON, []byte(`"`+data+`"`))
}

// A header write that is cut anywhere leaves the old metadata or the new, whatever
// state the copies were in before.
func TestPowerCutInWrite(t *testing.T) {
	good, _, key := small(t)
	for name, damage := range map[string]func(memory){
		"both good":         func(memory) {},
		"primary missing":   func(d memory) { clear(d[:4096]) },
		"primary damaged":   func(d memory) { d[5000]++ },
		"secondary missing": func(d memory) { clear(d[HeaderSize : HeaderSize+4096]) },
		"secondary damaged": func(d memory) { d[HeaderSize+5000]++ },
		"primary old":       func(d memory) { older(t, d, 0) },
		"secondary old":     func(d memory) { older(t, d, HeaderSize) },
	} {
		t.Run(name, func(t *testing.T) {
			before := memory(bytes.Clone(good))
			damage(before)
			r := &recorder{memory: bytes.Clone(before)}
			h, _, err := Read(r, smallSize)
			check(t, err)
			must[int](t)(h.SetToken(0, token("test", 0, "new")))
			check(t, h.Write(r))
			seen := map[bool]int{}
			r.cuts(before, func(name string, d memory) {
				h := whole(t, name, d, key)
				if !tokenIs(h, "x") && !tokenIs(h, "new") {
					t.Fatalf("%s: %+v", name, h.Tokens())
				}
				seen[tokenIs(h, "new")]++
			})
			if seen[true] == 0 || seen[false] == 0 {
				t.Errorf("old and new were seen: %v", seen)
			}
			if h := whole(t, "uncut", r.memory, key); !tokenIs(h, "new") {
				t.Errorf("%+v", h.Tokens())
			}
		})
	}
}

// older makes one copy the one before the other.
func older(t testing.TB, d memory, at int64) {
	t.Helper()
	h, _, err := Read(d, int64(len(d)))
	check(t, err)
	b := h.bin
	b.Sequence--
	check(t, writeCopy(d, b, bytes.ReplaceAll(h.json, []byte(`"x"`), []byte(`"w"`)), at, zeros{}))
}

// Adding and killing slots: the other slot opens after a cut anywhere.
func TestPowerCutInSlotChanges(t *testing.T) {
	before, _, key := small(t)
	r := &recorder{memory: bytes.Clone(before)}
	h, _, err := Read(r, smallSize)
	check(t, err)
	second := must[int](t)(h.AddSlot(r, key, []byte("second"), cheap))
	check(t, h.Write(r))
	r.cuts(before, func(name string, d memory) {
		h := whole(t, name, d, key)
		if len(h.Slots()) == 2 {
			if _, _, err := h.Unlock(d, []byte("second"), second); err != nil {
				t.Fatalf("%s: the header has the slot, but %v", name, err)
			}
		}
	})
	before = bytes.Clone(r.memory)
	r = &recorder{memory: bytes.Clone(before)}
	h, _, err = Read(r, smallSize)
	check(t, err)
	check(t, h.KillSlot(r, second))
	check(t, h.Write(r))
	r.cuts(before, func(name string, d memory) { whole(t, name, d, key) })
}

func TestPowerCutInRepair(t *testing.T) {
	good, _, key := small(t)
	for at := range []int64{0, HeaderSize} {
		before := memory(bytes.Clone(good))
		clear(before[at : at+512])
		r := &recorder{memory: bytes.Clone(before)}
		if _, _, err := Repair(r, smallSize); err != nil {
			t.Fatal(err)
		}
		r.cuts(before, func(name string, d memory) { whole(t, name, d, key) })
	}
}

// Format over an older volume: what is left is no volume, the old one, or the new
// one, never a mixture that opens.
func TestPowerCutInFormat(t *testing.T) {
	before, old, _ := small(t)
	key := randomKey(t)
	r := &recorder{memory: bytes.Clone(before)}
	h := must[*Header](t)(Format(r, smallSize, Options{PayloadOffset: smallOffset}, key))
	seen := map[string]int{}
	r.cuts(before, func(name string, d memory) {
		got, _, err := Repair(d, smallSize)
		switch {
		case err != nil:
			if r := ReasonOf(err); r != ReasonNoHeader && r != ReasonBadHeader {
				t.Fatalf("%s: %v", name, err)
			}
			seen["none"]++
		case got.UUID() == old.UUID():
			if _, _, err := got.Unlock(d, chipPass); err != nil {
				t.Fatalf("%s: the old header is there, but %v", name, err)
			}
			seen["old"]++
		case got.UUID() == h.UUID():
			if _, err := got.verify(key); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			seen["new"]++
		default:
			t.Fatalf("%s: volume %s", name, got.UUID())
		}
	})
	if seen["none"] == 0 || seen["old"] == 0 || seen["new"] == 0 {
		t.Errorf("seen %v", seen)
	}
	if bytes.Contains(r.memory[:smallOffset], old.bin.UUID[:36]) {
		t.Error("the old header is still there")
	}
}

// A write that failed half way is followed by another one: two copies with one
// sequence number and different content must not come of it.
func TestFailedWriteUsesUpItsNumber(t *testing.T) {
	d, h, key := small(t)
	must[int](t)(h.SetToken(0, token("test", 0, "first")))
	if err := h.Write(&failing{memory: d, writes: 1}); ReasonOf(err) != ReasonDevice {
		t.Fatal(err)
	}
	must[int](t)(h.SetToken(0, token("test", 0, "second")))
	if err := h.Write(&failing{memory: d, writes: 1}); ReasonOf(err) != ReasonDevice {
		t.Fatal(err)
	}
	if h := whole(t, "after two failures", d, key); !tokenIs(h, "second") && !tokenIs(h, "first") {
		t.Errorf("%+v", h.Tokens())
	}
	check(t, h.Write(d))
	if h := whole(t, "after the third", d, key); !tokenIs(h, "second") {
		t.Errorf("%+v", h.Tokens())
	}
}

// failing takes some writes and refuses the next.
type failing struct {
	memory
	writes int
}

func (f *failing) WriteAt(b []byte, off int64) (int, error) {
	if f.writes--; f.writes < 0 {
		return 0, fmt.Errorf("the card is gone")
	}
	return f.memory.WriteAt(b, off)
}
