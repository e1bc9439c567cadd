package server

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/attestserver/identity"
	"portcullis/attestserver/verdict"
	"portcullis/internal/translog"
)

// renewEvery is how often a renewed verdict is recorded. The evidence chain
// head in the record commits to all the evidence between.
const renewEvery = time.Minute

// entry is one entry of the verdict log.
type entry struct {
	Time       string         `json:"time"`         // RFC 3339, milliseconds
	PC         string         `json:"pc,omitempty"` // its name, where attestd serves several
	Session    string         `json:"session"`
	Sequence   uint64         `json:"sequence,omitempty"`
	State      string         `json:"state"`
	Reason     string         `json:"reason"`
	Challenges uint64         `json:"challenges"`
	Failures   uint64         `json:"failures"`
	Evidence   string         `json:"evidence"` // chain head, hex
	Tier       string         `json:"tier"`
	Posture    string         `json:"posture"`
	Findings   []entryFinding `json:"findings,omitempty"`
	Asked      []entryAsked   `json:"asked,omitempty"` // whose nonces were in the question
}

type entryAsked struct {
	Nonce   string `json:"nonce"` // hex
	Context string `json:"context,omitempty"`
}

type entryFinding struct {
	Probe  string `json:"probe"`
	Reason string `json:"reason"`
	Detail string `json:"detail,omitempty"`
	Class  string `json:"class"`
}

// Record is the log of verdicts, open to proofs: one for all PCs. It remembers
// what must outlive attestd: which session of each PC was quarantined last, and
// whether the one that it is in has failed. Its methods may be called concurrently.
type Record struct {
	log *translog.Log
	key note.Verifier

	mu   sync.Mutex // guards what follows, and that it is what the log says
	path string
	past history
}

// OpenRecord opens or makes the log in dir, which key signs.
func OpenRecord(dir string, key ed25519.PrivateKey) (*Record, error) {
	signer, public, err := identity.LogSigner(key)
	if err != nil {
		return nil, fmt.Errorf("verdicts: %w", err)
	}
	l, err := translog.Open(dir, signer, public)
	if err != nil {
		return nil, fmt.Errorf("verdicts: %w", err)
	}
	r := &Record{log: l, key: public, path: filepath.Join(dir, historyFile)}
	if err := r.recall(); err != nil {
		l.Close()
		return nil, fmt.Errorf("verdicts: %w", err)
	}
	return r, nil
}

// recall reads what is remembered, and the entries that came after it.
func (r *Record) recall() error {
	entries, _ := r.log.Size()
	r.past = readHistory(r.path, entries)
	before := r.past.Entries
	if err := r.log.Each(before, func(b []byte) error {
		var e entry
		if err := json.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("verdict record: %w", err)
		}
		r.past.note(&e)
		return nil
	}); err != nil || r.past.Entries-before < historyEvery {
		return err
	}
	return r.remember()
}

// Close signs what is new and closes the log.
func (r *Record) Close() error { return r.log.Close() }

// publish signs what is new. It may run beside write.
func (r *Record) publish() error {
	if err := r.log.Publish(); err != nil {
		return err
	}
	r.mu.Lock()
	late := r.past.Entries-r.past.stored >= historyEvery
	r.mu.Unlock()
	if !late {
		return nil
	}
	return r.remember()
}

// origin is the log's name.
func (r *Record) origin() string { return r.key.Name() }

// earlier reads a checkpoint that somebody has of this log; "" is none.
func (r *Record) earlier(text string) (*translog.Checkpoint, error) {
	if text == "" {
		return nil, nil
	}
	return translog.ParseCheckpoint([]byte(text), r.key)
}

// prove publishes and shows an entry to be in the log, and the log to continue
// an earlier checkpoint, which may be nil.
func (r *Record) prove(index int64, earlier *translog.Checkpoint) (entry []byte, proof string, consistency [][]byte, err error) {
	if err := r.log.Publish(); err != nil {
		return nil, "", nil, err
	}
	reader, err := translog.NewReader(r.log.Reader(), r.key)
	if err != nil {
		return nil, "", nil, err
	}
	if entry, err = reader.Entry(index); err != nil {
		return nil, "", nil, err
	}
	p, err := reader.Prove(index)
	if err != nil {
		return nil, "", nil, err
	}
	if earlier != nil {
		if consistency, err = reader.Consistency(earlier); err != nil {
			return nil, "", nil, err
		}
	}
	return entry, p.String(), consistency, nil
}

// wasQuarantined tells whether the session of a PC was quarantined, also by an
// earlier run of attestd.
func (r *Record) wasQuarantined(pc, session string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return session != "" && r.past.of(pc).Quarantined == session
}

// hasFailed tells whether the session of a PC has failed before, and fatally.
func (r *Record) hasFailed(pc, session string) (failed, fatal bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.past.of(pc)
	return session != "" && p.Failed == session, p.Fatal
}

// write appends e: the kernel has it when write returns. With durable it is on the
// disk, in one fsync with what all others wrote who wait for theirs. A session's
// quarantine is, whatever the caller wants. It returns the index of the entry.
func (r *Record) write(e entry, durable bool) (int64, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return 0, fmt.Errorf("verdicts: %w", err)
	}
	r.mu.Lock()
	durable = durable || e.State == verdict.Quarantined.String() && r.past.of(e.PC).Quarantined != e.Session
	index, err := r.log.Append(b)
	if err == nil {
		r.past.note(&e)
	}
	r.mu.Unlock()
	if err == nil && durable {
		err = r.log.Sync()
	}
	if err != nil {
		return 0, fmt.Errorf("verdicts: %w", err)
	}
	return index, nil
}
