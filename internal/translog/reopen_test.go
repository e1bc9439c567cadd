package translog

import (
	"os"
	"testing"
)

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
