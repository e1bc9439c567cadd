package server

import (
	"encoding/json"
	"fmt"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
	"portcullis/internal/journal"
)

// renewEvery is how often a renewed verdict is recorded. The evidence chain
// head in the record commits to all the evidence between.
const renewEvery = time.Minute

// entry is one record of the verdict journal.
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
}

type entryFinding struct {
	Probe  string `json:"probe"`
	Reason string `json:"reason"`
	Detail string `json:"detail,omitempty"`
	Class  string `json:"class"`
}

// Record is the journal of verdicts. It remembers the one thing that must
// outlive attestd: which session was quarantined last.
type Record struct {
	journal     *journal.Journal
	quarantined string
	failed      string // session that has failed, not forgiven by a restart
	fatal       bool   // with a fatal finding
	renewed     time.Time
}

// OpenRecord opens or makes the journal at path.
func OpenRecord(path string) (*Record, error) {
	r := &Record{}
	j, _, err := journal.Open(path, func(rec journal.Record) error {
		var e entry
		if err := json.Unmarshal(rec.Payload, &e); err != nil {
			return fmt.Errorf("verdict record: %w", err)
		}
		if e.State == verdict.Quarantined.String() {
			r.quarantined = e.Session
		}
		r.remember(e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("verdicts: %w", err)
	}
	r.journal = j
	return r, nil
}

// Close closes the journal.
func (r *Record) Close() error { return r.journal.Close() }

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
	if _, err := r.journal.Append(b); err != nil {
		return fmt.Errorf("verdicts: %w", err)
	}
	r.remember(e)
	if e.State == verdict.Quarantined.String() && r.quarantined != e.Session {
		r.quarantined = e.Session
		if err := r.journal.Sync(); err != nil {
			return fmt.Errorf("verdicts: %w", err)
		}
	}
	return nil
}
