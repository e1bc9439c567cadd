package lab

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

func TestLockLeavesNoFileAndIsHeldByOne(t *testing.T) {
	p, err := newPlace(t.TempDir(), "one")
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.lock(); !errors.Is(err, ErrRunning) {
		t.Fatalf("taken twice: %v", err)
	}
	p.unlock(f)
	if left, err := os.ReadDir(p.base); err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v %v", left, err)
	}
}

// Removing the file while others open it must not let two in.
func TestLockUnderContention(t *testing.T) {
	p, err := newPlace(t.TempDir(), "one")
	if err != nil {
		t.Fatal(err)
	}
	var inside, got atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 300 {
				f, err := p.lock()
				if errors.Is(err, ErrRunning) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				got.Add(1)
				inside.Add(-1)
				p.unlock(f)
			}
		})
	}
	wg.Wait()
	if got.Load() == 0 {
		t.Error("nobody got the lock")
	}
}
