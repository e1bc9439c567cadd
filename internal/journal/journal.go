// Package journal keeps an append-only file of records, each chained to the one
// before it by SHA-256, so that a record cannot be changed, left out or put in
// afterwards without breaking every later one. Services keep their ledgers and
// states in it; it knows nothing of what a record means.
//
// Append hands a record to the kernel: it outlives the process from then on.
// Sync waits until it outlives the machine; callers that wait at the same time
// share one fsync. A record torn by a crash at the end of the file is cut when
// the file is opened, and reported; anything wrong before that is an error.
package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Record is one record that was read back.
type Record struct {
	Seq     uint64 // from 1
	Offset  int64  // of its frame in the file, bytes
	Payload []byte // valid only during the call that hands it out
	Hash    Hash   // of the chain up to and with this record
}

// Report says what reading a file found.
type Report struct {
	Records  uint64
	Head     Hash
	Valid    int64 // bytes of whole records, the file's head included
	TornTail int64 // bytes behind them that are a torn record
}

// ErrLocked means that another process has the journal open.
var ErrLocked = errors.New("journal is open in another process")

// Journal is an open file. Its methods may be called concurrently.
type Journal struct {
	path string

	mu      sync.Mutex // guards the file's end
	file    *os.File
	seq     uint64
	head    Hash
	end     int64
	failure error // after a failed write nothing is appended any more

	syncMu sync.Mutex // one fsync at a time; never taken while mu is held
	synced uint64
	syncs  atomic.Uint64
}

// Open opens or makes the journal at path, hands every record to each (which
// may be nil) and cuts a torn tail. A broken record is a *BrokenError.
func Open(path string, each func(Record) error) (*Journal, Report, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, Report{}, fmt.Errorf("open journal: %w", err)
	}
	j, report, err := open(f, path, each)
	if err != nil {
		f.Close()
		return nil, report, fmt.Errorf("open journal %s: %w", path, err)
	}
	return j, report, nil
}

func open(f *os.File, path string, each func(Record) error) (*Journal, Report, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, Report{}, err
	}
	report, err := Read(f, each)
	if err != nil {
		return nil, report, err
	}
	if report.Valid == 0 { // new, or torn while its head was written
		if err := writeHead(f, path); err != nil {
			return nil, report, err
		}
		report.Valid, report.Head = headSize, genesis
	}
	if err := f.Truncate(report.Valid); err != nil {
		return nil, report, fmt.Errorf("cut torn tail: %w", err)
	}
	if err := f.Sync(); err != nil {
		return nil, report, err
	}
	return &Journal{path: path, file: f, seq: report.Records, head: report.Head, end: report.Valid, synced: report.Records}, report, nil
}

// Append adds a record of at most MaxPayload bytes and returns its number.
func (j *Journal) Append(payload []byte) (uint64, error) {
	if len(payload) == 0 || len(payload) > MaxPayload {
		return 0, fmt.Errorf("journal %s: record of %d bytes, 1 to %d are possible", j.path, len(payload), MaxPayload)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return 0, j.failure
	}
	frame, hash := encode(j.head, j.seq+1, payload)
	if _, err := j.file.WriteAt(frame, j.end); err != nil {
		// What stands behind the end now is unknown. Cutting it keeps the file
		// readable; if that fails too, the torn tail is cut at the next start.
		j.failure = errors.Join(fmt.Errorf("append to journal %s: %w", j.path, err), j.file.Truncate(j.end))
		return 0, j.failure
	}
	j.seq, j.head, j.end = j.seq+1, hash, j.end+int64(len(frame))
	return j.seq, nil
}

// Sync returns once every record that was appended before the call is on the disk.
func (j *Journal) Sync() error {
	j.mu.Lock()
	want, failure := j.seq, j.failure
	j.mu.Unlock()
	if failure != nil {
		return failure
	}
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced >= want {
		return nil // the one before us has synced our record too
	}
	j.mu.Lock()
	covers := j.seq
	j.mu.Unlock()
	if err := j.file.Sync(); err != nil {
		// The kernel drops pages that it could not write: a second fsync would
		// succeed and lie. Nothing after this is trusted.
		err = fmt.Errorf("sync journal %s: %w", j.path, err)
		j.mu.Lock()
		j.failure = err
		j.mu.Unlock()
		return err
	}
	j.syncs.Add(1)
	j.synced = covers
	return nil
}

// Syncs is how many fsyncs Sync has made: fewer than it was called, where callers
// came at the same time.
func (j *Journal) Syncs() uint64 { return j.syncs.Load() }

// Head returns the number of the last record and the hash of the chain.
func (j *Journal) Head() (uint64, Hash) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seq, j.head
}

// Close syncs and closes the file.
func (j *Journal) Close() error {
	err := j.Sync()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure == nil {
		j.failure = fmt.Errorf("journal %s: %w", j.path, os.ErrClosed)
	}
	return errors.Join(err, j.file.Close())
}

// ReadFile reads the journal at path without changing or locking it: a record
// that is being written meanwhile shows as a torn tail.
func ReadFile(path string, each func(Record) error) (Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return Report{}, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	report, err := Read(f, each)
	if err != nil {
		return report, fmt.Errorf("read journal %s: %w", path, err)
	}
	return report, nil
}

func writeHead(f *os.File, path string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt(fileHead(), 0); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), dir.Sync(), dir.Close())
}
