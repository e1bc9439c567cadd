package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sizes lie at and beside every border of a tree.
var sizes = []int{0, 1, 31, BlockSize - 1, BlockSize, BlockSize + 1, 2 * BlockSize, SegmentSize - 1, SegmentSize, SegmentSize + 1, SegmentSize + BlockSize,
	2 * SegmentSize, 3*SegmentSize + 5, 127 * SegmentSize, 128 * SegmentSize, 128*SegmentSize + 1}

func random(size int, seed byte) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// written is the digest of b, written in pieces of at most piece bytes.
func written(b []byte, piece int) Sum {
	var d Digest
	for len(b) > 0 {
		n := min(piece, len(b))
		d.Write(b[:n])
		b = b[n:]
	}
	return d.Sum()
}

// The digests are those of the program fsverity, with which files are signed.
func TestDigestIsThatOfFsverity(t *testing.T) {
	dir := t.TempDir()
	for _, size := range sizes {
		b := random(size, 1)
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("fsverity", "digest", "--compact", file).Output()
		if err != nil {
			t.Fatalf("fsverity (Debian package fsverity): %v", err)
		}
		want := strings.TrimSpace(string(out))
		for _, workers := range []int{1, 2, 7} {
			sum, err := Of(bytes.NewReader(b), int64(size), workers)
			if err != nil || hex.EncodeToString(sum[:]) != want {
				t.Errorf("%d bytes, %d workers: %x, %v; want %s", size, workers, sum, err, want)
			}
		}
		for _, piece := range []int{32 << 10, 1<<20 + 3} {
			if sum := written(b, piece); hex.EncodeToString(sum[:]) != want {
				t.Errorf("%d bytes in pieces of %d: %x, want %s", size, piece, sum, want)
			}
		}
	}
}

// What fsverity 1.5 printed of the empty file and of one byte.
func TestKnownDigests(t *testing.T) {
	for text, want := range map[string]string{
		"":  "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
		"x": "dbbdfa9d606f7adeaa7f16dcfb0d49161c4cfb82d9d51cfb5cb43fa3dacb9e5b",
	} {
		if sum := written([]byte(text), 1); hex.EncodeToString(sum[:]) != want {
			t.Errorf("%q: %x", text, sum)
		}
	}
}

// One value serves one file after the other.
func TestDigestIsUsedAgain(t *testing.T) {
	var d Digest
	for range 2 {
		for _, size := range []int{SegmentSize * 5, 0, 10, SegmentSize} {
			b := random(size, 2)
			d.Write(b)
			if d.Sum() != written(b, 4096) {
				t.Errorf("%d bytes after another file: another digest", size)
			}
		}
	}
}

// A file that is shorter than it was is none of that size.
func TestFileThatEndsEarly(t *testing.T) {
	for _, size := range []int64{1, SegmentSize, 5 * SegmentSize} {
		if _, err := Of(bytes.NewReader(random(int(size-1), 3)), size, 2); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes and one less: %v", size, err)
		}
	}
}

// FuzzDigest: both ways to the digest agree, and one byte changes it.
func FuzzDigest(f *testing.F) {
	f.Add(uint32(0), uint16(1), uint32(0))
	f.Add(uint32(BlockSize), uint16(4096), uint32(BlockSize-1))
	f.Add(uint32(SegmentSize+1), uint16(60000), uint32(SegmentSize))
	f.Fuzz(func(t *testing.T, size uint32, piece uint16, at uint32) {
		b := random(int(size%(4*SegmentSize)), byte(size))
		one, err := Of(bytes.NewReader(b), int64(len(b)), 2)
		if err != nil || one != written(b, int(piece)+1) {
			t.Fatalf("%d bytes in pieces of %d: two digests, %v", len(b), int(piece)+1, err)
		}
		if len(b) == 0 {
			return
		}
		b[int(at)%len(b)] ^= 1
		if one == written(b, 1<<16) {
			t.Fatal("a changed byte has the same digest")
		}
	})
}

// The kernel is asked on file systems of its own alone, and says no on a file that has none.
func TestMeasureWithoutVerity(t *testing.T) {
	for _, file := range []string{filepath.Join(t.TempDir(), "file"), "/proc/self/status"} {
		if !strings.HasPrefix(file, "/proc") {
			if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := (Kernel{}).Measure(f); !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrNone) {
			t.Errorf("%s: %v", file, err)
		}
		if err := (Kernel{}).Enable(f); err != nil && !errors.Is(err, ErrUnsupported) || strings.HasPrefix(file, "/proc") && err == nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func BenchmarkDigest(b *testing.B) {
	data := random(64<<20, 4)
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers-%d", workers), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := Of(bytes.NewReader(data), int64(len(data)), workers); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("written", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			written(data, 32<<10)
		}
	})
}
