package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// asking shows the witnesses one checkpoint after the other: each of them beside the others, and no more than one to
// each at once. A checkpoint is final with the signature that makes the quorum; who takes longer is waited for by
// nobody, and is asked again when it has answered. One goroutine has it.
type asking struct {
	r       *Record
	now     *translog.Reader // whose checkpoint is shown; nil before the first
	lines   [][]byte         // the witnesses' signatures of it
	kept    int              // how many of them are on the disk; 0 = it is not final
	waits   []bool           // for a witness's answer, be it about an older checkpoint
	answers chan answered
	all     sync.WaitGroup // those who wait
}

type answered struct {
	witness int
	about   *translog.Checkpoint
	line    []byte
	fault   error
}

func (r *Record) newAsking() *asking {
	n := len(r.witnesses.Clients)
	return &asking{r: r, waits: make([]bool, n), answers: make(chan answered, n)}
}

// ask shows the log's growth to the witnesses until ctx ends. A witness that has seen more of this log than there is
// ends every permission.
func (r *Record) ask(ctx context.Context) error {
	a := r.newAsking()
	defer a.all.Wait() // answers has room for each of them
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for err := a.look(ctx); ; {
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case got := <-a.answers:
			err = a.take(got)
		case <-tick.C:
			err = a.look(ctx)
		}
	}
}

// look asks who can be asked, where there is something to sign.
func (a *asking) look(ctx context.Context) error {
	if len(a.waits) == 0 {
		return nil
	}
	if a.kept > 0 && a.signed() > a.kept {
		if err := a.keep(); err != nil {
			return err
		}
	}
	newest, err := a.r.Reader()
	if err != nil {
		return err
	}
	a.r.mu.Lock()
	known := a.r.cosigned
	a.r.mu.Unlock()
	if size := newest.Checkpoint.Size; size == 0 || size == known {
		return nil
	}
	// While one of them may still sign, the others are shown the same: signatures of different checkpoints make no quorum.
	if a.now == nil || a.kept > 0 || !slices.Contains(a.waits, true) {
		a.now, a.lines, a.kept = newest, make([][]byte, len(a.waits)), 0
	}
	for i := range a.waits {
		if !a.waits[i] && a.lines[i] == nil {
			a.waits[i] = true
			shown := a.now
			a.all.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, askTimeout)
				defer cancel()
				line, fault := a.r.witnesses.Clients[i].Cosign(ctx, shown, a.r.key)
				a.answers <- answered{i, shown.Checkpoint, line, fault}
			})
		}
	}
	return nil
}

func (a *asking) signed() (n int) {
	for _, line := range a.lines {
		if line != nil {
			n++
		}
	}
	return n
}

// take counts an answer.
func (a *asking) take(got answered) error {
	a.waits[got.witness] = false
	seen := a.r.witnesses.Clients[got.witness].Seen()
	another, err := a.r.another(got.about, seen, got.fault)
	if err != nil {
		return err
	}
	a.r.mu.Lock()
	if a.r.faults == nil {
		a.r.faults = make([]error, len(a.waits))
	}
	a.r.faults[got.witness] = got.fault
	if another {
		a.r.failure = refuse(ReasonRolledBack, "%v", got.fault)
	}
	failure := a.r.failure
	a.r.mu.Unlock()
	if another {
		// What the witness showed stays: the next start must not believe this log either.
		return errors.Join(failure, atomicfile.Replace(filepath.Join(a.r.dir, CosignedFile), seen, true))
	}
	if got.fault != nil || got.about != a.now.Checkpoint { // the others have signed an older one without it
		return nil
	}
	a.lines[got.witness] = got.line
	if a.kept == 0 && a.signed() >= max(1, a.r.witnesses.Quorum) {
		return a.keep()
	}
	return nil
}

// keep puts the checkpoint on the disk, with the signatures that there are. Only then it is final.
func (a *asking) keep() error {
	msg := slices.Concat(a.now.Checkpoint.Note, slices.Concat(a.lines...))
	if err := atomicfile.Replace(filepath.Join(a.r.dir, CosignedFile), msg, true); err != nil {
		return err
	}
	a.kept = a.signed()
	a.r.mu.Lock()
	defer a.r.mu.Unlock()
	a.r.cosigned = a.now.Checkpoint.Size
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
