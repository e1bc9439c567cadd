package ktextmask

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
)

// packedKernel is a bzImage whose kernel has one segment: text at offset 8192.
func packedKernel(t testing.TB, text []byte, how string, address uint64) []byte {
	t.Helper()
	const at = 8192
	le := binary.LittleEndian
	elf := make([]byte, at)
	copy(elf, "\x7fELF\x02\x01")
	le.PutUint64(elf[32:], 64)
	le.PutUint16(elf[56:], 2)
	le.PutUint32(elf[64:], 4) // a note comes first
	p := elf[64+56:]
	le.PutUint32(p, 1)
	le.PutUint64(p[8:], at)
	le.PutUint64(p[16:], address)
	le.PutUint64(p[32:], uint64(len(text)))
	return bzImage(t, append(append(elf, text...), make([]byte, 50_000)...), how)
}

// readText is all of the text.
func readText(m *Mask, b []byte) (text []byte, err error) {
	r, err := m.OpenText(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		piece, err := r.Next()
		if errors.Is(err, io.EOF) {
			return text, nil
		}
		if err != nil {
			return nil, err
		}
		text = append(text, piece...)
	}
}

func TestOpenText(t *testing.T) {
	s := newSample()
	m, err := Build(bzImage(t, s.elf(), "gzip"))
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"zstd", "xz", "gzip"} {
		b := packedKernel(t, s.text, how, textAddr)
		text, err := readText(m, b)
		if err != nil || !bytes.Equal(text, s.text) {
			t.Errorf("%s: %d bytes, %v", how, len(text), err)
		}
	}
	other := slices.Clone(s.text)
	other[Granule+1000] ^= 1
	for name, b := range map[string][]byte{
		"another kernel": packedKernel(t, other, "zstd", textAddr),
		"elsewhere":      packedKernel(t, s.text, "zstd", textAddr+1),
		"cut short":      packedKernel(t, s.text[:100], "zstd", textAddr),
		"not a kernel":   make([]byte, 10_000),
		"no ELF":         bzImage(t, make([]byte, 100_000), "zstd"),
	} {
		if _, err := readText(m, b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSubtract(t *testing.T) {
	for _, c := range []struct{ a, b, want []Range }{
		{[]Range{{0, 10}}, nil, []Range{{0, 10}}},
		{[]Range{{0, 10}}, []Range{{0, 10}}, nil},
		{[]Range{{0, 10}}, []Range{{2, 3}, {7, 5}}, []Range{{0, 2}, {5, 2}}},
		{[]Range{{5, 5}, {20, 5}}, []Range{{0, 6}, {9, 12}, {24, 9}}, []Range{{6, 3}, {21, 3}}},
		{[]Range{{5, 5}}, []Range{{0, 5}, {10, 5}}, []Range{{5, 5}}},
	} {
		if got := subtract(c.a, c.b); !slices.Equal(got, c.want) {
			t.Errorf("%v less %v: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

// What is gathered piece by piece, scattered, gives the same text.
func TestGatherScatter(t *testing.T) {
	s := newSample()
	m, err := Build(bzImage(t, s.elf(), "gzip"))
	if err != nil {
		t.Fatal(err)
	}
	sites := m.Boot
	var got []byte
	for at := 0; at < len(s.text); at += 1000 {
		got = Gather(got, s.text[at:min(at+1000, len(s.text))], uint64(at), sites)
	}
	text := slices.Clone(s.text)
	Zero(text, 0, sites)
	rest := got
	for at := 0; at < len(text) && err == nil; at += 700 {
		rest, err = Scatter(text[at:min(at+700, len(text))], uint64(at), rest, sites)
	}
	if err != nil || len(rest) > 0 || !bytes.Equal(text, s.text) {
		t.Errorf("%d bytes left, %v", len(rest), err)
	}
	if _, err := Scatter(text, 0, got[1:], sites); err == nil {
		t.Error("a byte too few was accepted")
	}
	if len(got) == 0 || len(m.Boot) == 0 {
		t.Error("nothing was gathered")
	}
}
