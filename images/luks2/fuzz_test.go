package luks2

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	luks "github.com/anatol/luks.go"
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
		luksGoSurvives(t, text)
	})
}

// luksGoSurvives gives luks.go metadata that Read accepts. It computes with what it
// finds, so Read has to keep from it whatever would make it panic or take the
// memory of the machine.
func luksGoSurvives(t *testing.T, text []byte) {
	t.Helper()
	if len(text) >= HeaderSize-binarySize {
		return
	}
	d := forge(t, text)
	h, _, err := Read(d, smallSize)
	if err != nil {
		if r := ReasonOf(err); r != ReasonSize {
			t.Errorf("Read refuses what was accepted: %v", err)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "volume")
	check(t, os.WriteFile(path, d, 0o600))
	dev, err := luks.Open(path)
	if err != nil {
		t.Fatalf("luks.go does not read it: %v\n%s", err, text)
	}
	defer dev.Close()
	if _, err := dev.Tokens(); err != nil {
		t.Errorf("luks.go does not read the tokens: %v\n%s", err, text)
	}
	for _, s := range h.Slots() {
		k := h.meta.keyslots[s.ID].KDF
		if k.affordable(Limits{Memory: 64, Time: 1, Iterations: 1000}) != nil {
			continue
		}
		if _, err := dev.UnsealVolume(s.ID, []byte("nobody's")); err != luks.ErrPassphraseDoesNotMatch {
			t.Errorf("luks.go: %v\n%s", err, text)
		}
	}
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
