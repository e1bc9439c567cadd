package server

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/attestserver/identity"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
	"portcullis/internal/translog"
)

// renewEvery is how often a renewed verdict is recorded. The evidence chain
// head in the record commits to all the evidence between.
const renewEvery = time.Minute

// entry is one entry of the verdict log.
type entry struct {
	Time       string         `json:"time"` // RFC 3339, milliseconds
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

// Record is the log of verdicts, open to proofs. It remembers the one thing that
// must outlive attestd: which session was quarantined last.
type Record struct {
	log         *translog.Log
	key         note.Verifier
	quarantined string
	failed      string // session that has failed, not forgiven by a restart
	fatal       bool   // with a fatal finding
	renewed     time.Time
}

// remembered is how many entries are read back at the start. Those of the
// session that the PC is in are the newest ones.
const remembered = 512

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
	r := &Record{log: l, key: public}
	if err := r.recall(); err != nil {
		l.Close()
		return nil, fmt.Errorf("verdicts: %w", err)
	}
	return r, nil
}

func (r *Record) recall() error {
	last, err := r.log.Last(remembered)
	if err != nil {
		return err
	}
	for _, b := range last {
		var e entry
		if err := json.Unmarshal(b, &e); err != nil {
			return fmt.Errorf("verdict record: %w", err)
		}
		if e.State == verdict.Quarantined.String() {
			r.quarantined = e.Session
		}
		r.remember(e)
	}
	return nil
}

// Close signs what is new and closes the log.
func (r *Record) Close() error { return r.log.Close() }

// publish signs what is new. It may run beside write.
func (r *Record) publish() error { return r.log.Publish() }

// place tells how many entries the log has and what its name is.
func (r *Record) place() (entries int64, origin string) {
	entries, _ = r.log.Size()
	return entries, r.key.Name()
}

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

// wasQuarantined tells whether the session was quarantined, also by an earlier
// run of attestd.
func (r *Record) wasQuarantined(session string) bool {
	return session != "" && r.quarantined == session
}

// remember notes a failure of the session of e.
func (r *Record) remember(e entry) {
	if e.Session != r.failed {
		r.failed, r.fatal = "", false
	}
	if e.Failures > 0 && e.Session != "" {
		r.failed = e.Session
	}
	for _, f := range e.Findings {
		r.fatal = r.fatal || f.Class == protocol.Fatal.String()
	}
}

// write appends e. The kernel has it when write returns; a quarantine is on
// the disk, too.
func (r *Record) write(e entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("verdicts: %w", err)
	}
	if _, err := r.log.Append(b); err != nil {
		return fmt.Errorf("verdicts: %w", err)
	}
	r.remember(e)
	if e.State == verdict.Quarantined.String() && r.quarantined != e.Session {
		r.quarantined = e.Session
		if err := r.log.Sync(); err != nil {
			return fmt.Errorf("verdicts: %w", err)
		}
	}
	return nil
}
