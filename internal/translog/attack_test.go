package translog

import (
	"errors"
	"math"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

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

// TestAttack_LogWithoutEnd: who has a log's key can sign any size. Whoever reads it, or is a witness, is not kept busy
// for ever by a tree whose halves nobody can count.
func TestAttack_LogWithoutEnd(t *testing.T) {
	k := newKeys(t, "test.log")
	for size, want := range map[int64]string{0: "", 1: "", maxSize: "", maxSize + 1: ReasonCheckpoint, 1 << 62: ReasonCheckpoint, 1<<62 + 1: ReasonCheckpoint, math.MaxInt64: ReasonCheckpoint} {
		msg, err := sign("test.log", size, reference(t, 1), k.signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ParseCheckpoint(msg, k.public)
		if Reason(err) != want || err == nil && c.Size != size {
			t.Errorf("%d: %+v %v", size, c, err)
		}
	}
	// The largest that is taken ends.
	now, earlier := &Checkpoint{Size: maxSize}, &Checkpoint{Size: maxSize - 1}
	if err := CheckConsistency(now, earlier, [][]byte{make([]byte, tlog.HashSize)}); Reason(err) != ReasonFork {
		t.Error(err)
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
