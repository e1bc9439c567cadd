package translog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"portcullis/internal/journal"
)

func (l *Log) tailPath(start int64) string {
	return filepath.Join(l.dir, fmt.Sprintf("tail-%020d.journal", start))
}

// tails lists the first indices of the tails there are, in order.
func (l *Log) tails() ([]int64, error) {
	names, err := filepath.Glob(filepath.Join(l.dir, "tail-*.journal"))
	if err != nil {
		return nil, err
	}
	var starts []int64
	for _, name := range names {
		digits := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "tail-"), ".journal")
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n%tileWidth != 0 || len(digits) != 20 {
			return nil, refuse(ReasonBroken, "a tail of the name %s", filepath.Base(name))
		}
		starts = append(starts, n)
	}
	slices.Sort(starts)
	return starts, nil
}

// openTails reads the tail. Two of them are there when the machine stopped while
// one was replacing the other: the older is whole up to where the newer was
// begun, and the newer may lack what had not reached the disk.
func (l *Log) openTails(signed bool) error {
	starts, err := l.tails()
	switch {
	case err != nil:
		return err
	case len(starts) == 0 && signed:
		return refuse(ReasonBroken, "a checkpoint is there and the tail is not")
	case len(starts) == 0:
		l.tail, _, err = journal.Open(l.tailPath(0), nil)
		return err
	case len(starts) > 2:
		return refuse(ReasonBroken, "%d tails", len(starts))
	}
	var older [][]byte
	if len(starts) == 2 {
		if older, err = entriesOf(l.tailPath(starts[0])); err != nil {
			return err
		}
		skip := starts[1] - starts[0]
		if int64(len(older)) < skip {
			return refuse(ReasonBroken, "a tail of %d entries was replaced after %d", len(older), skip)
		}
		older = older[skip:]
	}
	l.start = starts[len(starts)-1]
	if l.tail, _, err = journal.Open(l.tailPath(l.start), func(r journal.Record) error {
		l.entries = append(l.entries, bytes.Clone(r.Payload))
		return nil
	}); err != nil {
		return err
	}
	for i, e := range older {
		switch {
		case i >= len(l.entries):
			if _, err := l.tail.Append(e); err != nil {
				return err
			}
			l.entries = append(l.entries, e)
		case !bytes.Equal(e, l.entries[i]):
			return refuse(ReasonBroken, "entry %d differs between two tails", l.start+int64(i))
		}
	}
	if len(starts) == 2 {
		return l.dropTail(starts[0])
	}
	return nil
}

func entriesOf(path string) (entries [][]byte, err error) {
	_, err = journal.ReadFile(path, func(r journal.Record) error {
		entries = append(entries, bytes.Clone(r.Payload))
		return nil
	})
	return entries, err
}

// rotate begins a new tail at start: all before it is in full bundles and below
// the checkpoint. Call with mu held.
func (l *Log) rotate(start int64) error {
	next, _, err := journal.Open(l.tailPath(start), nil)
	if err != nil {
		return err
	}
	rest := l.entries[start-l.start:]
	for _, e := range rest {
		if _, err := next.Append(e); err != nil {
			next.Close()
			return err
		}
	}
	old, before := l.tail, l.start
	l.syncs += old.Syncs()
	l.tail, l.start, l.entries = next, start, slices.Clone(rest)
	if err := errors.Join(next.Sync(), old.Close()); err != nil {
		return err
	}
	return os.Remove(l.tailPath(before))
}

// dropTail removes an older tail after the newer is on the disk.
func (l *Log) dropTail(start int64) error {
	if err := l.tail.Sync(); err != nil {
		return err
	}
	return os.Remove(l.tailPath(start))
}
