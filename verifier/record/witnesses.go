package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"portcullis/internal/atomicfile"
	"portcullis/internal/translog"
	"portcullis/verifier/approval"
	"portcullis/verifier/witness"
)

// CosignedFile is the newest checkpoint that enough witnesses have signed, in the
// directory of the log.
const CosignedFile = "checkpoint.cosigned"

// maxCosigned bounds that file: a checkpoint and a signature of each witness.
const maxCosigned = 64 << 10

// Witnesses are those who are asked to sign the log's growth. With a quorum of 0
// an approval is effective when it is on the disk, and nobody but the Pi says so.
type Witnesses struct {
	Quorum  int // signatures that make a checkpoint final, 0 to len(Clients)
	Clients []*witness.Client
}

// NewWitnesses checks that each witness counts once.
func NewWitnesses(quorum int, clients []*witness.Client) (Witnesses, error) {
	names, keys := map[string]bool{}, map[string]bool{}
	for _, c := range clients {
		if names[c.Key.Name()] || keys[c.Key.Material()] {
			return Witnesses{}, refuse(ReasonWitnesses, "%s, or its key, is there twice and would count twice", c.Key.Name())
		}
		names[c.Key.Name()], keys[c.Key.Material()] = true, true
	}
	if quorum < 0 || quorum > len(clients) {
		return Witnesses{}, refuse(ReasonWitnesses, "a quorum of %d with %d witnesses", quorum, len(clients))
	}
	return Witnesses{quorum, clients}, nil
}

func (w Witnesses) keys() (keys []*witness.Key) {
	for _, c := range w.Clients {
		keys = append(keys, c.Key)
	}
	return keys
}

// final is how many entries count as seen by others. Call with mu held.
func (r *Record) final() int64 {
	if r.witnesses.Quorum == 0 {
		return everything
	}
	return r.cosigned
}

// loadCosigned takes up what the witnesses had signed before.
func (r *Record) loadCosigned(now *translog.Reader) error {
	b, err := readCapped(filepath.Join(r.dir, CosignedFile), maxCosigned)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := translog.ParseCheckpoint(b, r.key)
	if err != nil {
		return err
	}
	// Also with a quorum of 0: what witnesses have signed must still be there.
	if err := now.Continues(c); err != nil {
		return refuse(ReasonRolledBack, "%v", err)
	}
	names, err := witness.Cosigners(b, r.key, r.witnesses.keys())
	if err != nil {
		return err
	}
	if len(names) >= r.witnesses.Quorum {
		r.cosigned = c.Size
	}
	return nil
}

// askTimeout bounds one witness's answer.
const askTimeout = 10 * time.Second

// ask shows the witnesses the newest checkpoint, all at the same time, and keeps it
// with their signatures when they are enough. A witness that has seen more of this
// log than there is ends every permission.
func (r *Record) ask(ctx context.Context) error {
	if len(r.witnesses.Clients) == 0 {
		return nil
	}
	reader, err := r.Reader()
	if err != nil {
		return err
	}
	now := reader.Checkpoint
	r.mu.Lock()
	known := r.cosigned
	r.mu.Unlock()
	if now.Size == 0 || now.Size == known {
		return nil
	}
	lines := make([][]byte, len(r.witnesses.Clients))
	faults := make([]error, len(lines))
	var all sync.WaitGroup
	for i, c := range r.witnesses.Clients {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			lines[i], faults[i] = c.Cosign(ctx, reader, r.key)
		})
	}
	all.Wait()
	return r.count(now, lines, faults)
}

func (r *Record) count(now *translog.Checkpoint, lines [][]byte, faults []error) error {
	msg, got := append([]byte(nil), now.Note...), 0
	for i, line := range lines {
		msg = append(msg, line...)
		if faults[i] == nil {
			got++
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = faults
	for i, fault := range faults {
		seen := r.witnesses.Clients[i].Seen()
		another, err := r.another(now, seen, fault)
		if err != nil {
			return err
		}
		if another {
			r.failure = refuse(ReasonRolledBack, "%v", fault)
			// What the witness showed stays: the next start must not believe this log either.
			kept := atomicfile.Replace(filepath.Join(r.dir, CosignedFile), seen, true)
			return errors.Join(r.failure, kept)
		}
	}
	if got == 0 || got < r.witnesses.Quorum {
		return nil
	}
	if err := atomicfile.Replace(filepath.Join(r.dir, CosignedFile), msg, true); err != nil {
		return err
	}
	r.cosigned = now.Size
	return nil
}

// another tells whether a witness that was asked about now has shown another log than there is, or more of
// it; seen is what it has shown, signed by the log.
func (r *Record) another(now *translog.Checkpoint, seen []byte, fault error) (bool, error) {
	var e *witness.Error
	if !errors.As(fault, &e) || !(e.Reason == witness.ReasonConflict && e.Size > now.Size || e.Reason == witness.ReasonProof) {
		return false, nil
	}
	c, err := translog.ParseCheckpoint(seen, r.key)
	if err != nil {
		return false, err
	}
	// The log grows while a witness takes its time, and everybody can read the newest checkpoint and show it
	// to a witness: more than was asked about is not more than there is.
	newest, err := r.Reader()
	if err != nil {
		return false, err
	}
	return translog.Reason(newest.Continues(c)) == translog.ReasonFork, nil
}

func readCapped(path string, limit int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > limit {
		return nil, refuse(ReasonEntry, "%s is longer than %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

// Status is what the log is worth at the moment.
type Status struct {
	Origin    string   `json:"origin"`
	Key       []byte   `json:"key"` // public half of the key that signs the log, base64
	Entries   int64    `json:"entries"`
	Approvers int      `json:"approvers"` // how many there are; 0 = nothing is approved
	Threshold int      `json:"threshold"`
	Quorum    int      `json:"quorum"`    // 0 = nobody but this Pi vouches for the log
	Witnesses int      `json:"witnesses"` // asked
	Cosigned  int64    `json:"cosigned"`  // entries that a quorum of them has signed
	Faults    []string `json:"faults"`    // what the witnesses answered last, where they did not sign
	Failed    string   `json:"failed"`    // why nothing is permitted any more; "" where it is not so
}

// Status tells it.
func (r *Record) Status() Status {
	entries, _ := r.log.Size()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{Origin: r.key.Name(), Key: r.public, Entries: entries, Approvers: len(r.state.approvers.Keys), Threshold: r.state.approvers.Threshold,
		Quorum: r.witnesses.Quorum, Witnesses: len(r.witnesses.Clients), Cosigned: r.cosigned, Faults: []string{}}
	for _, err := range r.faults {
		if err != nil {
			s.Faults = append(s.Faults, Plain(err.Error(), MaxDetail))
		}
	}
	if r.failure != nil {
		s.Failed = Plain(fmt.Sprint(r.failure), MaxDetail)
	}
	return s
}

var _ approval.Decider = (*Record)(nil)
