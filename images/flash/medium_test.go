package flash

import (
	"bytes"
	"fmt"
	"testing"

	"portcullis/images/blockmap"
	"portcullis/images/card"
	"portcullis/images/flash/flashtest"
	"portcullis/images/gpt"
)

const mib = 1 << 20

// medium is a card in memory that was used before, with room for what its fault needs.
type medium struct {
	b      []byte
	writes []int64 // offsets, in order
	reads  map[int64]int
	// before is asked before each write; its error is the write's.
	before func(off int64, n int) error
	// fault changes what a write does; nil writes.
	fault func(b []byte, off int64)
	syncs int
}

func used(size int) *medium {
	return &medium{b: bytes.Repeat([]byte{0xA5}, size), reads: map[int64]int{}}
}

func (m *medium) Size() int64 { return int64(len(m.b)) }
func (m *medium) Sync() error { m.syncs++; return nil }

func (m *medium) WriteAt(b []byte, off int64) (int, error) {
	if m.before != nil {
		if err := m.before(off, len(b)); err != nil {
			return 0, err
		}
	}
	if off%512 != 0 || len(b)%512 != 0 || off+int64(len(b)) > m.Size() {
		return 0, fmt.Errorf("%d bytes at %d", len(b), off)
	}
	m.writes = append(m.writes, off)
	if m.fault != nil {
		m.fault(b, off)
		return len(b), nil
	}
	return copy(m.b[off:], b), nil
}

func (m *medium) ReadBack(b []byte, off int64) error {
	if off%512 != 0 || len(b)%512 != 0 || off+int64(len(b)) > m.Size() {
		return fmt.Errorf("%d bytes at %d", len(b), off)
	}
	m.reads[off]++
	copy(b, m.b[off:])
	return nil
}

func (m *medium) ReadAt(b []byte, off int64) (int, error) { return copy(b, m.b[off:]), nil }

func load(t testing.TB, i *flashtest.Image) *Image {
	t.Helper()
	img, err := OpenImage(i.Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func seedText(t testing.TB) []byte {
	t.Helper()
	b, err := card.SeedImage("seed.yml", []byte("schema: portcullis/seed/v1\nhostname: door\nuplink: dhcp\n"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// holds compares a card with its image and settings.
func holds(t testing.TB, m *medium, i *flashtest.Image, seed []byte) {
	t.Helper()
	want := bytes.Clone(i.Raw)
	if seed != nil {
		at, err := SeedOffset(bytes.NewReader(i.Raw), int64(len(i.Raw)))
		if err != nil {
			t.Fatal(err)
		}
		copy(want[at:], seed)
	}
	if got := m.b[:len(want)]; !bytes.Equal(got, want) {
		for k := range got {
			if got[k] != want[k] {
				t.Fatalf("the card differs from the image, first at %d", k)
			}
		}
	}
	tail := len(m.b) - mib
	if !blockmap.Zero(m.b[tail:]) {
		t.Error("the last MiB is not zero")
	}
	if rest := m.b[len(want):tail]; len(bytes.Trim(rest, "\xA5")) != 0 {
		t.Error("what lies behind the image was touched")
	}
	table, _, err := gpt.Read(m, uint64(len(m.b)/512))
	if err != nil || len(table.Partitions) != 5 {
		t.Errorf("%v, %v", table, err)
	}
}
