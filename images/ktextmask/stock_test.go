package ktextmask

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

// largeKernel is one with text and read-only data, in which pieces come again from far away.
// Its frame declares the window that the kernel's build does, 128 MiB.
func largeKernel(t *testing.T, textSize, rodataSize int) (m *Mask, kernel, text, rodata []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 5))
	var all []byte
	for len(all) < textSize+rodataSize {
		if n := len(all); n > 300_000 && r.IntN(3) == 0 {
			from := r.IntN(n - 200_000)
			all = append(all, all[from:from+100_000]...)
			continue
		}
		for range 50_000 {
			all = append(all, byte(r.IntN(60)))
		}
	}
	all = all[:textSize+rodataSize]
	kernel = packedKernel(t, all, "zstd", textAddr)
	frame := bytes.Index(kernel, []byte{0x28, 0xb5, 0x2f, 0xfd})
	if frame < 0 || kernel[frame+4]&singleSegment != 0 {
		t.Fatal("the frame has no window to declare")
	}
	kernel[frame+5], _ = window(128 << 20)
	m = &Mask{TextBase: textAddr, TextSize: uint64(textSize)}
	for piece := range slices.Chunk(all[:textSize], Granule) {
		m.Stock = append(m.Stock, sha256.Sum256(piece))
	}
	return m, kernel, all[:textSize], all[textSize:]
}

// allocated is how many bytes do takes from the heap, whether it gives them back or not.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// attestd has a few tens of MiB for all of its work: what is unpacked is kept once, and
// nothing of the window that the frame declares beyond it.
func TestOpen_TakesWhatIsUnpackedAndNoMore(t *testing.T) {
	const textSize, rodataSize, beside = 5<<20 - 4096, 3<<20 + 100, 4 << 20
	m, kernel, text, rodata := largeKernel(t, textSize, rodataSize)
	same := true
	check := func(off int, b, want []byte) { same = same && bytes.Equal(b, want[off:off+len(b)]) }
	for _, c := range []struct {
		name  string
		limit uint64
		read  func() error
	}{
		{"text", textSize + beside, func() error {
			r, err := m.OpenText(bytes.NewReader(kernel), int64(len(kernel)))
			if err != nil {
				return err
			}
			defer r.Close()
			n := 0
			for ; err == nil; n++ {
				var b []byte
				if b, err = r.Next(); err == nil {
					check(n*Granule, b, text)
				}
			}
			same = same && n-1 == len(m.Stock)
			if err == io.EOF {
				err = nil
			}
			return err
		}},
		{"read-only data", textSize + rodataSize + beside, func() error {
			r, size, err := m.OpenRodata(bytes.NewReader(kernel), int64(len(kernel)), textAddr+textSize)
			if err != nil {
				return err
			}
			defer r.Close()
			same = same && size == rodataSize
			buf := make([]byte, 10_000)
			for off := 0; off < rodataSize; off += len(buf) {
				b := buf[:min(len(buf), rodataSize-off)]
				if _, err := io.ReadFull(r, b); err != nil {
					return err
				}
				check(off, b, rodata)
			}
			return nil
		}},
	} {
		var err error
		if n := allocated(func() { err = c.read() }); n > c.limit {
			t.Errorf("%s: %d bytes were allocated, at most %d may be", c.name, n, c.limit)
		}
		if err != nil || !same {
			t.Errorf("%s: %v, as it was built: %t", c.name, err, same)
		}
	}
}

// The window holds what is read to the last byte, wherever that lies in its block, and the
// whole of that block.
func TestOpenText_AnyEnd(t *testing.T) {
	all, kernel, text, _ := largeKernel(t, 3<<20, 1<<20)
	for _, n := range []int{1, Granule, 128<<10 - 8192, 128<<10 - 8191, 1<<20 - 1, 1<<20 + 1, 2<<20 - 8192, 2<<20 + 77, 3<<20 - 1} {
		m := *all
		m.TextSize, m.Stock = uint64(n), nil
		for piece := range slices.Chunk(text[:n], Granule) {
			m.Stock = append(m.Stock, sha256.Sum256(piece))
		}
		if got, err := readText(&m, kernel); err != nil || !bytes.Equal(got, text[:n]) {
			t.Errorf("the first %d bytes: %d, %v", n, len(got), err)
		}
	}
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		n    uint64
		want byte
	}{{0, 0}, {1024, 0}, {1025, 1}, {1920, 7}, {1921, 8}, {128 << 20, 17 << 3}, {128<<20 + 1, 17<<3 | 1}} {
		if d, ok := window(c.n); !ok || d != c.want {
			t.Errorf("%d bytes: %#x, %t, want %#x", c.n, d, ok, c.want)
		}
	}
	if _, ok := window(1 << 50); ok {
		t.Error("a window that no descriptor has")
	}
}
