package verity

import (
	"bytes"
	"crypto/cipher"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Tags of the bytes that were hashed are those bytes', and the digest is the same one.
func TestTagsAreOfWhatWasHashed(t *testing.T) {
	tagger := NewTagger()
	for _, size := range sizes {
		b := random(size, 5)
		want := written(b, 1<<20)
		for _, workers := range []int{1, 3} {
			sum, tags, err := tagger.Of(bytes.NewReader(b), int64(size), workers)
			if err != nil || sum != want || int64(len(tags)) != segments(int64(size)) {
				t.Fatalf("%d bytes: %x with %d tags, %v; want %x", size, sum, len(tags), err, want)
			}
			// Of no bytes there are no tags by which they could be known.
			if same, err := tagger.Same(bytes.NewReader(b), int64(size), tags, workers); err != nil || same != (size > 0) {
				t.Errorf("%d bytes: known %v, %v", size, same, err)
			}
		}
	}
}

// TestAttack_OtherBytesUnderTags: whatever is changed of a file, its tags are not those of what there is now.
func TestAttack_OtherBytesUnderTags(t *testing.T) {
	const size = 3*SegmentSize + 5
	tagger, b := NewTagger(), random(size, 6)
	_, tags, err := tagger.Of(bytes.NewReader(b), size, 2)
	if err != nil {
		t.Fatal(err)
	}
	same := func(t *testing.T, by *Tagger, b []byte, tags Tags) bool {
		t.Helper()
		same, err := by.Same(bytes.NewReader(b), int64(len(b)), tags, 2)
		if err != nil {
			t.Fatal(err)
		}
		return same
	}
	if !same(t, tagger, b, tags) {
		t.Fatal("the bytes themselves are not known")
	}
	for _, at := range []int{0, 15, 16, SegmentSize - 1, SegmentSize, 2*SegmentSize + 7, 3 * SegmentSize, size - 1} {
		for bit := range 8 {
			b[at] ^= 1 << bit
			if same(t, tagger, b, tags) {
				t.Errorf("bit %d of byte %d is changed, and it is taken for the same", bit, at)
			}
			b[at] ^= 1 << bit
		}
	}
	swapped := slices.Concat(b[SegmentSize:2*SegmentSize], b[:SegmentSize], b[2*SegmentSize:])
	if same(t, tagger, swapped, tags) {
		t.Error("two segments changed places")
	}
	for name, other := range map[string][]byte{"shorter": b[:size-1], "longer": append(bytes.Clone(b), 0), "a segment less": b[:3*SegmentSize], "other bytes": random(size, 7)} {
		if same(t, tagger, other, tags) {
			t.Errorf("%s: taken for the same", name)
		}
	}
	if same(t, NewTagger(), b, tags) {
		t.Error("two taggers have one key")
	}
	if same(t, tagger, b, make(Tags, len(tags))) || same(t, tagger, b, nil) {
		t.Error("known by no tags")
	}
	// What can no longer be read is an error, as with a digest.
	if _, err := tagger.Same(bytes.NewReader(b[:size-1]), size, tags, 2); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("one byte less than its size: %v", err)
	}
	if _, made, err := tagger.Of(bytes.NewReader(b[:size-1]), size, 2); !errors.Is(err, io.ErrUnexpectedEOF) || made != nil {
		t.Errorf("one byte less than its size: %d tags, %v", len(made), err)
	}
}

// noting notes the nonces of all that is sealed.
type noting struct {
	cipher.AEAD
	mu   sync.Mutex
	seen map[string]int
}

func (n *noting) Seal(dst, nonce, plain, data []byte) []byte {
	n.mu.Lock()
	n.seen[string(nonce)]++
	n.mu.Unlock()
	return n.AEAD.Seal(dst, nonce, plain, data)
}

// No nonce is used for two tags, whatever becomes of them, and comparing takes none.
func TestNoncesAreUsedOnce(t *testing.T) {
	tagger := NewTagger()
	n := &noting{AEAD: tagger.aead, seen: map[string]int{}}
	tagger.aead = n
	const size = 2*SegmentSize + 1
	b := random(size, 9)
	if _, _, err := tagger.Of(bytes.NewReader(b[:size-1]), size, 2); err == nil {
		t.Error("a file that ends early has tags")
	}
	var tags Tags
	var err error
	for range 100 { // more than a byte of the nonce counts
		if _, tags, err = tagger.Of(bytes.NewReader(b), size, 2); err != nil {
			t.Fatal(err)
		}
	}
	before := tagger.used.Load()
	if same, err := tagger.Same(bytes.NewReader(b), size, tags, 2); !same || err != nil || tagger.used.Load() != before {
		t.Errorf("known %v with %d new tags: %v", same, tagger.used.Load()-before, err)
	}
	total := 0
	for nonce, times := range n.seen {
		if total += times; times > 1 {
			t.Errorf("the nonce %x was used %d times", nonce, times)
		}
	}
	if total < 300 || uint64(total) != before {
		t.Errorf("%d tags, %d nonces taken", total, before)
	}
}

// Nor is a number, however many workers ask for one.
func TestNumbersAreTakenOnce(t *testing.T) {
	tagger := NewTagger()
	const workers, each = 8, 500_000
	var taken [workers][]uint64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			taken[w] = make([]uint64, 0, each)
			for range each {
				taken[w] = append(taken[w], tagger.tag(nil).number)
			}
		})
	}
	wg.Wait()
	all := slices.Concat(taken[:]...)
	slices.Sort(all)
	if len(slices.Compact(all)) != workers*each || all[0] == 0 {
		t.Errorf("of %d numbers some are the same", workers*each)
	}
}

// Where the processor does not make it quick there are no tags.
func TestProcessorWithoutAES(t *testing.T) {
	// The kernel says what the processor has.
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(info))
	has := slices.Contains(words, "aes") && slices.Contains(words, map[string]string{"amd64": "pclmulqdq", "arm64": "pmull"}[runtime.GOARCH])
	if (QuickTagger() != nil) != has {
		t.Errorf("the processor has the instructions: %v, and tags are made: %v", has, !has)
	}
}

func BenchmarkTags(b *testing.B) {
	data := random(64<<20, 4)
	tagger := NewTagger()
	_, tags, err := tagger.Of(bytes.NewReader(data), int64(len(data)), 2)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("made-with-digest", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, _, err := tagger.Of(bytes.NewReader(data), int64(len(data)), 1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("compared", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if same, err := tagger.Same(bytes.NewReader(data), int64(len(data)), tags, 1); !same || err != nil {
				b.Fatal(same, err)
			}
		}
	})
}
