package translog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
)

// sizes are around every edge of a tile and of two levels of tiles.
var sizes = []int{0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 700, 1024}

func TestRootsAreThoseOfTheTree(t *testing.T) {
	k := newKeys(t, "test.log")
	for _, n := range sizes {
		l := open(t, t.TempDir(), k)
		fill(t, l, 0, n)
		if err := l.Publish(); err != nil {
			t.Fatal(err)
		}
		r := reader(t, l, k)
		if r.Checkpoint.Size != int64(n) || r.Checkpoint.Root != reference(t, n) {
			t.Errorf("%d entries: checkpoint of %d with root %v", n, r.Checkpoint.Size, r.Checkpoint.Root)
		}
		if err := r.Audit(nil); err != nil {
			t.Errorf("%d entries: %v", n, err)
		}
	}
}

// A third level of tiles begins at 65,536 entries: the files and the edge that
// is read back from them must agree with the tree in memory.
func TestThirdLevelOfTiles(t *testing.T) {
	dir, k := t.TempDir(), newKeys(t, "test.log")
	l := open(t, dir, k)
	const n = 65536 + 300
	fill(t, l, 0, n)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, k)
	fill(t, l, n, n+1)
	if err := l.Publish(); err != nil {
		t.Fatal(err)
	}
	r := reader(t, l, k)
	if r.Checkpoint.Root != reference(t, n+1) {
		t.Error("another root than the tree's")
	}
	for _, i := range []int64{0, 255, 256, 65535, 65536, n} {
		p, err := r.Prove(i)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Verify(entry(int(i)), k.public); err != nil {
			t.Errorf("entry %d: %v", i, err)
		}
	}
}

func TestProofsHoldAndContinue(t *testing.T) {
	k := newKeys(t, "test.log")
	l := open(t, t.TempDir(), k)
	var past []*Checkpoint
	n := 0
	for _, size := range sizes {
		fill(t, l, n, size)
		n = size
		if err := l.Publish(); err != nil {
			t.Fatal(err)
		}
		r := reader(t, l, k)
		for _, c := range past {
			if err := r.Continues(c); err != nil {
				t.Errorf("%d after %d: %v", size, c.Size, err)
			}
		}
		past = append(past, r.Checkpoint)
		for i := range n {
			if i > 10 && i%37 != 0 && i != n-1 {
				continue
			}
			p, err := r.Prove(int64(i))
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := ParseProof([]byte(p.String()))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parsed.Verify(entry(i), k.public); err != nil {
				t.Errorf("entry %d of %d: %v", i, n, err)
			}
			if _, err := parsed.Verify(entry(i+1), k.public); Reason(err) != ReasonProof {
				t.Errorf("another entry passes as %d: %v", i, err)
			}
			if e, err := r.Entry(int64(i)); err != nil || string(e) != string(entry(i)) {
				t.Errorf("entry %d reads as %q: %v", i, e, err)
			}
		}
	}
	if _, err := reader(t, l, k).Prove(int64(n)); Reason(err) != ReasonIndex {
		t.Errorf("proof of an entry that is not there: %v", err)
	}
}

func TestConcurrentAppendsSyncsAndPublishes(t *testing.T) {
	k := newKeys(t, "test.log")
	l := open(t, t.TempDir(), k)
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			for i := range 150 {
				if _, err := l.Append(fmt.Appendf(nil, "%d of %d", i, w)); err != nil {
					t.Error(err)
				}
				if i%20 == 0 {
					if err := l.Sync(); err != nil {
						t.Error(err)
					}
				}
				if i%50 == 0 {
					if err := l.Publish(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	if err := l.Publish(); err != nil {
		t.Fatal(err)
	}
	r, seen := reader(t, l, k), map[string]bool{}
	if err := r.Audit(func(_ int64, e []byte) error { seen[string(e)] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 8*150 {
		t.Errorf("%d entries, want %d", len(seen), 8*150)
	}
}

// Partial tiles are removed when the full one is there, and only then.
func TestFilesAreThoseOfTheLayout(t *testing.T) {
	dir, k := t.TempDir(), newKeys(t, "test.log")
	l := open(t, dir, k)
	for _, n := range []int{5, 200, 300} {
		from, _ := l.Size()
		fill(t, l, int(from), n)
		if err := l.Publish(); err != nil {
			t.Fatal(err)
		}
	}
	var have []string
	if err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			have = append(have, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := "checkpoint tail-00000000000000000256.journal tile/0/000 tile/0/001.p/44 tile/1/000.p/1 tile/entries/000 tile/entries/001.p/44"
	if got := strings.Join(have, " "); got != want {
		t.Errorf("files %s\nwant  %s", got, want)
	}
	if got := elements(1234067); got != "x001/x234/067" {
		t.Errorf("index 1234067 is %s", got)
	}
}

func TestEachReachesBackOverTheTail(t *testing.T) {
	dir, k := t.TempDir(), newKeys(t, "test.log")
	l := open(t, dir, k)
	fill(t, l, 0, 600)
	if err := l.Publish(); err != nil {
		t.Fatal(err)
	}
	fill(t, l, 600, 610)
	for _, from := range []int{0, 1, 255, 256, 300, 511, 512, 513, 600, 609, 610} {
		i := from
		if err := l.Each(int64(from), func(e []byte) error {
			if string(e) != string(entry(i)) {
				t.Fatalf("from %d: %q at %d", from, e, i)
			}
			i++
			return nil
		}); err != nil || i != 610 {
			t.Fatalf("from %d: up to %d, %v", from, i, err)
		}
	}
	for _, from := range []int64{-1, 611} {
		if err := l.Each(from, func([]byte) error { return nil }); Reason(err) != ReasonIndex {
			t.Errorf("from %d: %v", from, err)
		}
	}
	stop := errors.New("enough")
	if err := l.Each(10, func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("goes on after an error: %v", err)
	}
	flip(t, dir, "tile/entries/001")
	if err := l.Each(300, func([]byte) error { return nil }); Reason(err) != ReasonBroken {
		t.Errorf("a changed entry is believed: %v", err)
	}
	if err := l.Each(512, func([]byte) error { return nil }); err != nil {
		t.Errorf("entries behind the changed one: %v", err)
	}
}

// Those who wait at the same time share an fsync, however quick the disk is.
func TestSyncsAreShared(t *testing.T) {
	l := open(t, t.TempDir(), newKeys(t, "test.log"))
	const writers, rounds = 64, 20
	for i := range rounds {
		var group, appended sync.WaitGroup
		appended.Add(writers)
		for w := range writers {
			group.Go(func() {
				_, err := l.Append(entry(w*rounds + i))
				appended.Done()
				appended.Wait()
				if err = errors.Join(err, l.Sync()); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	// One a round, and what a new tail needs.
	if n := l.Syncs(); n == 0 || n > 2*rounds {
		t.Errorf("%d fsyncs for %d rounds of %d writers", n, rounds, writers)
	}
}
