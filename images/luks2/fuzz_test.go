package luks2

import (
	"bytes"
	"testing"
)

// FuzzMetadata: what is accepted can be written, and reads the same again.
func FuzzMetadata(f *testing.F) {
	good := twoSlots(f)
	f.Add(good)
	f.Add(change(f, good, `"json_size":`, `"requirements":{"mandatory":["online-reencrypt-v2"]},"json_size":`))
	f.Add(change(f, good, `"size":"dynamic"`, `"size":"4096"`))
	f.Add([]byte(`{"keyslots":{},"tokens":{},"segments":{},"digests":{},"config":{"json_size":"12288","keyslots_size":"0"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parse(text)
		if err == nil {
			err = m.check(HeaderSize)
		}
		if err != nil {
			if ReasonOf(err) == "" {
				t.Errorf("no reason: %v", err)
			}
			return
		}
		out, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parse(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := again.check(HeaderSize); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if twice, err := again.encode(); err != nil || !bytes.Equal(out, twice) {
			t.Errorf("%v\n%s\n%s", err, out, twice)
		}
		for n, raw := range m.tokens {
			if !bytes.Equal(raw, again.tokens[n]) {
				t.Errorf("token %d: %s became %s", n, raw, again.tokens[n])
			}
		}
	})
}

// FuzzHeader: the first part of a device, both copies. The checksums are made right
// when the input asks for it, or nothing would be behind them.
func FuzzHeader(f *testing.F) {
	d, _, _ := small(f)
	f.Add([]byte(d[:2*HeaderSize]), true)
	f.Add([]byte(d[:2*HeaderSize]), false)
	f.Add(append(make([]byte, HeaderSize), d[HeaderSize:2*HeaderSize]...), true)
	f.Add([]byte("LUKS\xba\xbe\x00\x02"), true)
	f.Fuzz(func(t *testing.T, begin []byte, right bool) {
		d := make(memory, smallSize)
		copy(d[:smallOffset], begin)
		if right {
			for _, at := range []int64{0, HeaderSize} {
				sum := checksum(d[at : at+HeaderSize])
				clear(d[at+checksumAt : at+checksumEnd])
				copy(d[at+checksumAt:], sum[:])
			}
		}
		h, health, err := Repair(d, smallSize)
		if err != nil {
			if ReasonOf(err) == "" {
				t.Errorf("no reason: %v", err)
			}
			return
		}
		again, whole, err := Read(d, smallSize)
		if err != nil || !whole.Good() || !bytes.Equal(again.JSON(), h.JSON()) {
			t.Errorf("%+v, repaired: %+v, %v", health, whole, err)
		}
		h.Limits = Limits{Memory: 64, Time: 1, Iterations: 1000}
		key, _, err := h.Unlock(d, []byte("nobody's"))
		if err == nil {
			t.Errorf("opened with key %x", key)
		}
	})
}
