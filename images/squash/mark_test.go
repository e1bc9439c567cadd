package squash

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaver reads so many bytes and is gone then.
type leaver struct{ left int }

func (l *leaver) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, unix.EPIPE
	}
	l.left -= len(p)
	return len(p), nil
}

// counter counts.
type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

// A reader that leaves between the two blocks that end the archive has all of it; one
// that leaves before has not.
func TestReaderThatLeavesAtTheMark(t *testing.T) {
	const block = 512
	tree := NewTree(time.Unix(1, 0))
	if err := tree.WriteFile("/a", 0o644, make([]byte, 700)); err != nil {
		t.Fatal(err)
	}
	var all counter
	if err := tree.WriteTar(&all, nil); err != nil {
		t.Fatal(err)
	}
	for left, want := range map[int]bool{
		all.n:           true,
		all.n - block:   true,  // the first empty block was read
		all.n - 3*block: false, // the last block of the file was not
		block:           false,
		0:               false,
	} {
		err := tree.WriteTar(&leaver{left}, nil)
		if readToItsEnd(err) != want {
			t.Errorf("left after %d of %d bytes: %v", left, all.n, err)
		}
	}
}
