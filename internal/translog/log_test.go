package translog

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type keys struct {
	signer note.Signer
	public note.Verifier
}

func newKeys(t testing.TB, name string) keys {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	var k keys
	if k.signer, err = note.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	if k.public, err = note.NewVerifier(public); err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t testing.TB, dir string, k keys) *Log {
	t.Helper()
	l, err := Open(dir, k.signer, k.public)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func entry(i int) []byte { return fmt.Appendf(nil, "entry %d", i) }

func fill(t testing.TB, l *Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		n, err := l.Append(entry(i))
		if err != nil {
			t.Fatal(err)
		}
		if n != int64(i) {
			t.Fatalf("entry %d got the index %d", i, n)
		}
	}
}

func reader(t testing.TB, l *Log, k keys) *Reader {
	t.Helper()
	r, err := NewReader(l.Reader(), k.public)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reference computes a root the slow way, with the library alone.
func reference(t testing.TB, n int) tlog.Hash {
	t.Helper()
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		all := make([]tlog.Hash, len(at))
		for i, x := range at {
			all[i] = stored[x]
		}
		return all, nil
	})
	for i := range n {
		h, err := tlog.StoredHashes(int64(i), entry(i), read)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, h...)
	}
	root, err := tlog.TreeHash(int64(n), read)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

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

// Whatever moment the process ended at, the log goes on where it was: with what
// the kernel had, and in the continuation of what was signed.
func TestReopenedLogContinues(t *testing.T) {
	dir, k := t.TempDir(), newKeys(t, "test.log")
	n := 0
	var last *Checkpoint
	for round, more := range []int{1, 3, 250, 1, 1, 256, 300, 0, 513} {
		l, err := Open(dir, k.signer, k.public)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if have, _ := l.Size(); have != int64(n) {
			t.Fatalf("round %d: %d entries, want %d", round, have, n)
		}
		fill(t, l, n, n+more)
		n += more
		if round%2 == 0 {
			if err := l.Publish(); err != nil {
				t.Fatal(err)
			}
			r := reader(t, l, k)
			if last != nil {
				if err := r.Continues(last); err != nil {
					t.Fatal(err)
				}
			}
			last = r.Checkpoint
		}
		l.tail.Close() // as kill -9 would: nothing is published on the way out
	}
	l := open(t, dir, k)
	if err := l.Publish(); err != nil {
		t.Fatal(err)
	}
	if r := reader(t, l, k); r.Checkpoint.Root != reference(t, n) {
		t.Error("another root than the tree's")
	}
}

// Between a new tail and the end of the old one the machine may stop at any
// point; the newer may then lack what it had copied.
func TestPowerCutWhileTheTailIsReplaced(t *testing.T) {
	k := newKeys(t, "test.log")
	for kept := 0; kept <= 44; kept += 11 {
		dir := t.TempDir()
		l := open(t, dir, k)
		fill(t, l, 0, 300)
		old, err := os.ReadFile(l.tailPath(0))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Publish(); err != nil {
			t.Fatal(err)
		}
		l.tail.Close()
		if err := os.WriteFile(l.tailPath(0), old, 0o600); err != nil {
			t.Fatal(err)
		}
		// A frame of an entry of 9 bytes has 61.
		if err := os.Truncate(l.tailPath(256), int64(16+kept*61)); err != nil {
			t.Fatal(err)
		}
		again := open(t, dir, k)
		if have, _ := again.Size(); have != 300 {
			t.Fatalf("%d kept: %d entries, want 300", kept, have)
		}
		if starts, _ := again.tails(); len(starts) != 1 || starts[0] != 256 {
			t.Fatalf("%d kept: tails %v", kept, starts)
		}
		fill(t, again, 300, 301)
		if err := again.Publish(); err != nil {
			t.Fatal(err)
		}
		if r := reader(t, again, k); r.Checkpoint.Root != reference(t, 301) {
			t.Errorf("%d kept: another root", kept)
		}
	}
}

// Partial tiles are not synced: a power cut may take them, and they are made again.
func TestPowerCutTakesPartialTiles(t *testing.T) {
	dir, k := t.TempDir(), newKeys(t, "test.log")
	l := open(t, dir, k)
	fill(t, l, 0, 300)
	if err := l.Publish(); err != nil {
		t.Fatal(err)
	}
	l.tail.Close()
	for _, gone := range []string{"tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44"} {
		truncate(t, dir, gone, 0)
	}
	again := open(t, dir, k)
	if err := again.Publish(); err != nil {
		t.Fatal(err)
	}
	if err := reader(t, again, k).Audit(nil); err != nil {
		t.Error(err)
	}
}

func TestAttack_ChangedLogIsNotContinued(t *testing.T) {
	k := newKeys(t, "test.log")
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		want   string
	}{
		"tail taken away":   {func(t *testing.T, dir string) { remove(t, dir, "tail-00000000000000000256.journal") }, ReasonBroken},
		"tail cut":          {func(t *testing.T, dir string) { truncate(t, dir, "tail-00000000000000000256.journal", 16+61) }, ReasonRolledBack},
		"tile changed":      {func(t *testing.T, dir string) { flip(t, dir, "tile/0/000") }, ReasonBroken},
		"tile taken away":   {func(t *testing.T, dir string) { remove(t, dir, "tile/0/000") }, ReasonMissing},
		"tile cut":          {func(t *testing.T, dir string) { truncate(t, dir, "tile/0/000", 100) }, ReasonTile},
		"checkpoint edited": {func(t *testing.T, dir string) { flip(t, dir, "checkpoint") }, ReasonCheckpoint},
		"tail renamed": {func(t *testing.T, dir string) {
			rename(t, dir, "tail-00000000000000000256.journal", "tail-00000000000000000512.journal")
		}, ReasonMissing},
		"tail of an odd place": {func(t *testing.T, dir string) {
			rename(t, dir, "tail-00000000000000000256.journal", "tail-00000000000000000255.journal")
		}, ReasonBroken},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir, k)
			fill(t, l, 0, 300)
			if err := l.Publish(); err != nil {
				t.Fatal(err)
			}
			l.tail.Close()
			c.change(t, dir)
			again, err := Open(dir, k.signer, k.public)
			if err == nil {
				again.Close()
			}
			if Reason(err) != c.want {
				t.Errorf("opened with %v, want %s", err, c.want)
			}
		})
	}
}

func TestAttack_ReaderFindsWhatWasChanged(t *testing.T) {
	k := newKeys(t, "test.log")
	dir := t.TempDir()
	l := open(t, dir, k)
	fill(t, l, 0, 300)
	if err := l.Publish(); err != nil {
		t.Fatal(err)
	}
	flip(t, dir, "tile/entries/000")
	r := reader(t, l, k)
	if err := r.Audit(nil); err == nil {
		t.Error("the audit passes over a changed entry")
	}
	if _, err := r.Entry(255); Reason(err) != ReasonBroken {
		t.Errorf("a changed entry was read: %v", err)
	}
	if _, err := r.Entry(299); err != nil {
		t.Errorf("an entry that was not changed: %v", err)
	}
	// A log of the same key with another history: each checkpoint is genuine.
	other := open(t, t.TempDir(), k)
	for range 300 {
		if _, err := other.Append([]byte("another")); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.Publish(); err != nil {
		t.Fatal(err)
	}
	if err := reader(t, other, k).Continues(r.Checkpoint); Reason(err) != ReasonFork {
		t.Errorf("a fork of the same size: %v", err)
	}
	if _, err := other.Append([]byte("more")); err != nil {
		t.Fatal(err)
	}
	if err := other.Publish(); err != nil {
		t.Fatal(err)
	}
	if err := reader(t, other, k).Continues(r.Checkpoint); Reason(err) != ReasonFork {
		t.Errorf("a fork that is longer: %v", err)
	}
	if err := r.Continues(reader(t, other, k).Checkpoint); Reason(err) != ReasonFork {
		t.Errorf("a log that has lost entries: %v", err)
	}
	if _, err := NewReader(l.Reader(), newKeys(t, "test.log").public); Reason(err) != ReasonCheckpoint {
		t.Errorf("a checkpoint of another key: %v", err)
	}
}

func TestImpossibleEntriesAreRefused(t *testing.T) {
	l := open(t, t.TempDir(), newKeys(t, "test.log"))
	for _, e := range [][]byte{nil, {}, make([]byte, MaxEntry+1)} {
		if _, err := l.Append(e); Reason(err) != ReasonSize {
			t.Errorf("%d bytes: %v", len(e), err)
		}
	}
	if _, err := l.Append(make([]byte, MaxEntry)); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Append([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
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

func remove(t *testing.T, dir, name string) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, dir, from, to string) {
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, dir, name string, size int64) {
	if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, dir, name string) {
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	k := newKeys(f, "test.log")
	msg, err := sign("test.log", 7, tlog.Hash{1}, k.signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Add([]byte("test.log\n7\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCheckpoint(b, k.public)
		if (c == nil) == (err == nil) {
			t.Fatal("neither a value nor an error")
		}
		if err != nil && Reason(err) != ReasonCheckpoint {
			t.Fatalf("untyped: %v", err)
		}
	})
}

func FuzzParseProof(f *testing.F) {
	f.Add([]byte((&Proof{Index: 3, Hashes: []tlog.Hash{{1}, {2}}, Checkpoint: []byte("x\n")}).String()))
	f.Add([]byte(proofHead + "\nextra AA==\nindex 0\n\nx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProof(b)
		if err != nil {
			if Reason(err) != ReasonProof {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		again, err := ParseProof([]byte(p.String()))
		if err != nil || again.String() != p.String() {
			t.Fatalf("does not survive: %v", err)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	f.Add(encodeBundle([][]byte{[]byte("a"), []byte("bc")}))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := ParseBundle(b)
		if err == nil && string(encodeBundle(entries)) != string(b) {
			t.Fatal("does not survive")
		}
	})
}

// BenchmarkAppendDurable is what one caller waits for who needs its entry on the disk.
func BenchmarkAppendDurable(b *testing.B) {
	l := open(b, b.TempDir(), newKeys(b, "test.log"))
	e := make([]byte, 600)
	for b.Loop() {
		if _, err := l.Append(e); err != nil {
			b.Fatal(err)
		}
		if err := l.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppendAndPublish appends without waiting and signs every 256 entries.
func BenchmarkAppendAndPublish(b *testing.B) {
	l := open(b, b.TempDir(), newKeys(b, "test.log"))
	e := make([]byte, 600)
	for i := 0; b.Loop(); i++ {
		if _, err := l.Append(e); err != nil {
			b.Fatal(err)
		}
		if i%256 == 255 {
			if err := l.Publish(); err != nil {
				b.Fatal(err)
			}
		}
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

// Those who wait at the same time share an fsync.
func TestSyncsAreShared(t *testing.T) {
	l := open(t, t.TempDir(), newKeys(t, "test.log"))
	const writers, each = 64, 20
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				if _, err := l.Append(entry(w*each + i)); err != nil {
					t.Error(err)
				}
				if err := l.Sync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	// Each of them waits for at most the one under way and the next one, so a round of
	// all writers needs two, however they come.
	if n := l.Syncs(); n == 0 || n > writers*each/4 {
		t.Errorf("%d fsyncs for %d entries of %d writers", n, writers*each, writers)
	}
}

// BenchmarkAppendDurableTogether is an entry that waits for the disk, beside as many
// others as there would be PCs.
func BenchmarkAppendDurableTogether(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(strconv.Itoa(writers), func(b *testing.B) {
			l := open(b, b.TempDir(), newKeys(b, "test.log"))
			b.SetParallelism(max(1, writers/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(p *testing.PB) {
				e := bytes.Repeat([]byte("x"), 400)
				for p.Next() {
					if _, err := l.Append(e); err != nil {
						b.Error(err)
					}
					if err := l.Sync(); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(l.Syncs())/float64(b.N), "fsyncs/op")
		})
	}
}
