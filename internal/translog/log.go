package translog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"portcullis/internal/journal"
)

// Log is an open log. Its methods may be called concurrently.
type Log struct {
	dir    string
	signer note.Signer

	mu      sync.Mutex // guards what follows; never held over an fsync
	tree    frontier
	tail    *journal.Journal
	start   int64      // index of the first entry in the tail, a multiple of tileWidth
	entries [][]byte   // those of the tail
	due     []fullTile // full, not written yet
	failure error
	syncs   uint64 // of tails that were replaced

	publishing sync.Mutex // one Publish at a time
	published  int64      // size of the checkpoint that this run has signed; -1 before, because a power cut may have taken partial tiles
}

// Open opens or makes the log in dir. signer's name is the log's origin, and key
// is signer's public half: the checkpoint on the disk must be signed by it, and
// what is on the disk must continue it.
func Open(dir string, signer note.Signer, key note.Verifier) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	l := &Log{dir: dir, signer: signer, published: -1}
	if err := l.load(key); err != nil {
		if l.tail != nil {
			l.tail.Close()
		}
		return nil, fmt.Errorf("log %s: %w", dir, err)
	}
	return l, nil
}

func (l *Log) load(key note.Verifier) error {
	var signed *Checkpoint
	msg, err := readFile(os.DirFS(l.dir), "checkpoint", maxCheckpoint)
	switch {
	case Reason(err) == ReasonMissing:
	case err != nil:
		return err
	default:
		if signed, err = ParseCheckpoint(msg, key); err != nil {
			return err
		}
	}
	if err := l.openTails(signed != nil); err != nil {
		return err
	}
	if err := l.edge(); err != nil {
		return err
	}
	check := func() error {
		if signed != nil && l.tree.size == signed.Size && l.tree.root() != signed.Root {
			return refuse(ReasonBroken, "the %d entries on the disk are not those that were signed", signed.Size)
		}
		return nil
	}
	if err := check(); err != nil {
		return err
	}
	for _, e := range l.entries {
		l.due = append(l.due, l.tree.add(tlog.RecordHash(e))...)
		if err := check(); err != nil {
			return err
		}
	}
	if signed != nil {
		if signed.Size > l.tree.size {
			return refuse(ReasonRolledBack, "%d entries on the disk, %d were signed", l.tree.size, signed.Size)
		}
		if signed.Size < l.start {
			return refuse(ReasonBroken, "the tail begins at %d, after the %d entries that were signed", l.start, signed.Size)
		}
	}
	return nil
}

// edge takes the right edge of the tree below the tail from the full tiles.
func (l *Log) edge() error {
	fsys := os.DirFS(l.dir)
	l.tree = frontier{size: l.start, levels: [][]tlog.Hash{nil}}
	for level, n := 1, l.start/tileWidth; n > 0; level, n = level+1, n/tileWidth {
		var hashes []tlog.Hash
		for i := n - n%tileWidth; i < n; i++ {
			b, err := readTile(fsys, level-1, i, tileWidth)
			if err != nil {
				return err
			}
			hashes = append(hashes, perfect(decodeTile(b)))
		}
		l.tree.levels = append(l.tree.levels, hashes)
	}
	return nil
}

func decodeTile(b []byte) []tlog.Hash {
	hashes := make([]tlog.Hash, len(b)/tlog.HashSize)
	for i := range hashes {
		hashes[i] = tlog.Hash(b[i*tlog.HashSize:])
	}
	return hashes
}

// Append adds an entry and returns its index. The kernel has it then.
func (l *Log) Append(entry []byte) (int64, error) {
	if len(entry) == 0 || len(entry) > MaxEntry {
		return 0, refuse(ReasonSize, "%d bytes, want 1 to %d", len(entry), MaxEntry)
	}
	entry = bytes.Clone(entry)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		return 0, l.failure
	}
	if _, err := l.tail.Append(entry); err != nil {
		return 0, l.fail(err)
	}
	index := l.tree.size
	l.entries = append(l.entries, entry)
	l.due = append(l.due, l.tree.add(tlog.RecordHash(entry))...)
	return index, nil
}

// fail ends the log: what could not be written must not be passed over. Call
// with mu held.
func (l *Log) fail(err error) error {
	if l.failure == nil {
		l.failure = fmt.Errorf("log %s: %w", l.dir, err)
	}
	return l.failure
}

// Sync returns when everything appended before is on the disk. Whoever calls it
// while an fsync is under way shares the next one with all the others who wait.
func (l *Log) Sync() error {
	l.mu.Lock()
	tail, err := l.tail, l.failure
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err = tail.Sync(); err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tail != tail && l.failure == nil {
		return nil // the tail was replaced, and that one is on the disk
	}
	return l.fail(err)
}

// Syncs is how many fsyncs of entries this run has made for callers of Sync and
// Publish: fewer than there were calls, where calls came at the same time.
func (l *Log) Syncs() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.syncs + l.tail.Syncs()
}

// Size is the number of entries, and the size of the newest checkpoint.
func (l *Log) Size() (entries, published int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.size, max(l.published, 0)
}

// Publish writes the tiles and signs a checkpoint over all that was appended.
// With nothing new it does nothing.
func (l *Log) Publish() error {
	l.publishing.Lock()
	defer l.publishing.Unlock()
	l.mu.Lock()
	if l.failure != nil || l.published == l.tree.size {
		defer l.mu.Unlock()
		return l.failure
	}
	tree, due, entries, start := l.tree.clone(), l.due, l.entries, l.start
	tail := l.tail
	l.mu.Unlock()
	err := l.publish(tail, tree, due, entries, start)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		return l.fail(err)
	}
	l.published, l.due = tree.size, l.due[len(due):]
	if tree.size-start >= tileWidth {
		if err := l.rotate(tree.size - tree.size%tileWidth); err != nil {
			return l.fail(err)
		}
	}
	return nil
}

func (l *Log) publish(tail *journal.Journal, tree frontier, due []fullTile, entries [][]byte, start int64) error {
	if err := tail.Sync(); err != nil {
		return err
	}
	for i := int64(0); (i+1)*tileWidth <= tree.size-start; i++ {
		bundle := encodeBundle(entries[i*tileWidth : (i+1)*tileWidth])
		if err := l.replace(bundlePath(start/tileWidth+i, tileWidth), bundle); err != nil {
			return err
		}
	}
	for _, t := range due {
		if err := l.replace(tilePath(t.level, t.index, tileWidth), encodeTile(t.hashes)); err != nil {
			return err
		}
	}
	// Partial tiles can be made again from the tail: they need not be durable.
	span := int64(tileWidth)
	for level, hashes := range tree.levels {
		if len(hashes) > 0 {
			if err := writeFile(l.dir, tilePath(level, tree.size/span, len(hashes)), encodeTile(hashes), false); err != nil {
				return err
			}
		}
		span *= tileWidth
	}
	if rest := tree.size % tileWidth; rest > 0 {
		last := entries[tree.size-start-rest : tree.size-start]
		if err := writeFile(l.dir, bundlePath(tree.size/tileWidth, int(rest)), encodeBundle(last), false); err != nil {
			return err
		}
	}
	msg, err := sign(l.signer.Name(), tree.size, tree.root(), l.signer)
	if err != nil {
		return err
	}
	return writeFile(l.dir, "checkpoint", msg, true)
}

// replace writes a full tile or bundle and removes its partial ones.
func (l *Log) replace(name string, data []byte) error {
	if err := writeFile(l.dir, name, data, true); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(l.dir, filepath.FromSlash(name)+".p"))
}

// Close publishes and closes the log.
func (l *Log) Close() error {
	err := l.Publish()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil && errors.Is(l.failure, ErrClosed) {
		return nil
	}
	l.failure = errors.Join(ErrClosed, l.failure)
	return errors.Join(err, l.tail.Close())
}

// Reader reads the log's files as they are on the disk now.
func (l *Log) Reader() fs.FS { return os.DirFS(l.dir) }

// Each hands the entries from index from on to f, in order, those that are not
// published yet included. An entry is valid only during its call. Entries that are
// appended meanwhile may be left out.
func (l *Log) Each(from int64, f func(entry []byte) error) error {
	l.mu.Lock()
	tail, start := l.entries, l.start
	l.mu.Unlock()
	if from < 0 || from > start+int64(len(tail)) {
		return refuse(ReasonIndex, "entry %d of %d", from, start+int64(len(tail)))
	}
	for ; from < start; from += tileWidth - from%tileWidth {
		bundle, err := l.full(from / tileWidth)
		if err != nil {
			return err
		}
		for _, e := range bundle[from%tileWidth:] {
			if err := f(e); err != nil {
				return err
			}
		}
	}
	for _, e := range tail[from-start:] {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

// full reads a full bundle and holds it against its tile.
func (l *Log) full(n int64) ([][]byte, error) {
	bundle, err := readBundle(l.Reader(), n, tileWidth)
	if err != nil {
		return nil, err
	}
	tile, err := readTile(l.Reader(), 0, n, tileWidth)
	if err != nil {
		return nil, err
	}
	for i, h := range decodeTile(tile) {
		if tlog.RecordHash(bundle[i]) != h {
			return nil, refuse(ReasonBroken, "entry %d is not the one that was signed", n*tileWidth+int64(i))
		}
	}
	return bundle, nil
}
