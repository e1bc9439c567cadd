package record

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/internal/translog"
	"portcullis/verifier/approval"
)

// Options of Open.
type Options struct {
	Dir       string             // of the log's files; made where it is not there
	Key       ed25519.PrivateKey // signs the log; its public half is in the log's name
	Approvers approval.Approvers // the zero value has none: nothing is approved
	Now       func() time.Time
	Witnesses Witnesses // the zero value asks nobody
}

// Record is the open log with the view that follows from it. Its methods may be
// called concurrently.
type Record struct {
	log       *translog.Log
	key       note.Verifier
	public    ed25519.PublicKey
	now       func() time.Time
	witnesses Witnesses
	dir       string

	mu       sync.Mutex
	state    State
	folding  folding
	cosigned int64 // entries below the newest checkpoint that the quorum has signed
	changed  chan struct{}
	faults   []error // of the witnesses, when they were asked last
	failure  error
}

// Open opens or makes the log, and reads all of it: every entry is compared with
// the signed checkpoint, and every permission with the entries before it.
func Open(o Options) (*Record, error) {
	public := o.Key.Public().(ed25519.PublicKey)
	key, err := Verifier(public)
	if err != nil {
		return nil, fmt.Errorf("approvals log: %w", err)
	}
	l, err := translog.Open(o.Dir, &signer{key, o.Key}, key)
	if err != nil {
		return nil, fmt.Errorf("approvals log: %w", err)
	}
	r := &Record{log: l, key: key, public: public, now: o.Now, witnesses: o.Witnesses, dir: o.Dir, changed: make(chan struct{})}
	if err := r.load(o.Approvers); err != nil {
		return nil, errors.Join(fmt.Errorf("approvals log %s: %w", o.Dir, err), l.Close())
	}
	return r, nil
}

func (r *Record) load(approvers approval.Approvers) error {
	// What the kernel had and no checkpoint covers yet is signed first: the audit
	// below then reads everything in one way.
	if err := r.log.Publish(); err != nil {
		return err
	}
	if entries, _ := r.log.Size(); entries > 0 {
		reader, err := translog.NewReader(r.log.Reader(), r.key)
		if err != nil {
			return err
		}
		if err := reader.Audit(func(i int64, e []byte) error { return at(i, r.state.Apply(e)) }); err != nil {
			return err
		}
		if err := r.loadCosigned(reader); err != nil {
			return err
		}
	}
	text := []byte(noApprovers)
	if len(approvers.Keys) > 0 {
		var err error
		if text, err = approvers.Encode(); err != nil {
			return err
		}
	}
	if known, err := r.state.approvers.Encode(); r.state.counts[KindApprovers] > 0 && (err == nil && bytes.Equal(known, text) || err != nil && bytes.Equal(text, noApprovers)) {
		return nil
	}
	if _, err := r.append(Entry{Kind: KindApprovers, Approvers: json.RawMessage(text)}); err != nil {
		return err
	}
	return r.log.Sync()
}

func at(index int64, err error) error {
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	return nil
}

// clock is the time of the next entry: a clock that was set back makes nothing
// valid again that has expired. Call with mu held.
func (r *Record) clock() time.Time {
	now := r.now().UTC().Truncate(time.Millisecond)
	if now.Before(r.state.last) {
		return r.state.last
	}
	return now
}

// append gives an entry its time, holds it against the state and hands it to the
// kernel. Call with mu held, and Sync before it takes effect.
func (r *Record) append(e Entry) (int64, error) {
	if r.failure != nil {
		return 0, r.failure
	}
	e.Time = r.clock()
	data, err := e.Encode()
	if err != nil {
		return 0, err
	}
	if err := r.state.Apply(data); err != nil {
		return 0, err
	}
	index, err := r.log.Append(data)
	if err != nil {
		r.failure = err // the state is ahead of the log: nothing is permitted any more
		return 0, err
	}
	return index, nil
}

// Decide answers a request and writes the answer down before it returns. It
// implements approval.Decider.
func (r *Record) Decide(q approval.Request) (approval.Permission, error) {
	q.Caller = Plain(q.Caller, MaxCaller)
	r.mu.Lock()
	if r.failure != nil {
		defer r.mu.Unlock()
		return approval.Permission{}, r.failure
	}
	st, no := r.state.decide(q, r.clock(), r.final())
	if no != nil {
		r.mu.Unlock()
		return approval.Permission{}, errors.Join(no, r.Refuse(Refusal{Action: string(q.Action), Reason: approval.Reason(no), Detail: no.Error(), Image: q.Image.Manifest, Caller: q.Caller}))
	}
	p := &Permission{Action: q.Action, Approval: st.Digest, Image: q.Image, Caller: q.Caller}
	profile := st.Approval.Profile
	if q.Action == approval.Start {
		p.Purpose, p.Profile, profile = q.Purpose, q.Profile, *q.Profile
	}
	index, err := r.append(Entry{Kind: KindPermission, Permission: p})
	r.mu.Unlock()
	if err == nil {
		err = r.sync()
	}
	if err != nil {
		return approval.Permission{}, err
	}
	return approval.Permission{Index: index, Approval: st.Digest, Name: st.Approval.Name, Version: st.Approval.Version,
		Image: q.Image, Profile: profile, NotAfter: st.Approval.NotAfter}, nil
}

// sync waits for the disk; where that fails, nothing is permitted any more.
func (r *Record) sync() error {
	err := r.log.Sync()
	if err != nil {
		r.mu.Lock()
		r.failure = err
		r.mu.Unlock()
	}
	return err
}

// Refuse writes down a refusal that somebody else gave: the guard, before an image
// was known. Count 0 is one. The same within 10 s is counted and written as one.
func (r *Record) Refuse(f Refusal) error {
	f.Count = max(f.Count, 1)
	f.Detail, f.Image, f.Caller = Plain(f.Detail, MaxDetail), Plain(f.Image, MaxDetail), Plain(f.Caller, MaxCaller)
	if err := f.check(); err != nil {
		return err
	}
	r.mu.Lock()
	if !r.folding.add(f, r.now()) {
		r.mu.Unlock()
		return nil
	}
	_, err := r.append(Entry{Kind: KindRefusal, Refusal: &f})
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return r.sync()
}

// flush writes what was counted for long enough.
func (r *Record) flush(all bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.folding.due(r.now(), all) {
		if _, err := r.append(Entry{Kind: KindRefusal, Refusal: &f}); err != nil {
			return err
		}
	}
	return nil
}

// Added is where an approval or revocation stands in the log.
type Added struct {
	Index  int64  `json:"index"`
	Kind   string `json:"kind"`
	Digest string `json:"digest"` // of what was signed
	New    bool   `json:"new"`    // false where it stood there already
}

// Add takes the envelope of an approval or a revocation. It is on the disk when
// Add returns; a revocation holds from the moment that Add is called.
func (r *Record) Add(envelope []byte) (Added, error) {
	peeked, err := approval.Peek(envelope)
	if err != nil {
		return Added{}, errors.Join(err, r.Refuse(Refusal{Action: "add", Reason: approval.Reason(err), Detail: err.Error()}))
	}
	kind := KindApproval
	if peeked.Revocation != nil {
		kind = KindRevocation
	}
	added, err := r.add(kind, peeked, envelope)
	if reason := approval.Reason(err); reason != "" {
		err = errors.Join(err, r.Refuse(Refusal{Action: "add", Reason: reason, Detail: err.Error(), Image: peeked.Digest}))
	}
	return added, err
}

func (r *Record) add(kind string, p *approval.Peeked, envelope []byte) (Added, error) {
	// The lock is held until it is on the disk: no entry below it may rest on an
	// approval that a power cut could take back.
	r.mu.Lock()
	defer r.mu.Unlock()
	if kind == KindApproval {
		i := slices.IndexFunc(r.state.standing, func(st *Standing) bool { return st.Digest == p.Digest && st.Signed == nil })
		if i >= 0 {
			return Added{r.state.standing[i].Index, kind, p.Digest, false}, nil
		}
	}
	if v := p.Revocation; v != nil {
		if was, ok := r.state.revoked[v.Approval+v.Image]; ok {
			return Added{was.index, kind, p.Digest, false}, nil
		}
	}
	index, err := r.append(Entry{Kind: kind, Envelope: envelope})
	if err != nil {
		return Added{}, err
	}
	close(r.changed)
	r.changed = make(chan struct{})
	if err := r.log.Sync(); err != nil {
		r.failure = err
		return Added{}, err
	}
	return Added{index, kind, p.Digest, true}, nil
}

// Changed is closed at the next approval or revocation: whoever runs containers
// then asks Holds for each.
func (r *Record) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Holds tells with a reason whether what was permitted by this approval must end.
func (r *Record) Holds(approvalDigest string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.holds(approvalDigest, r.clock())
}

// Resolve finds the digests that belong to what an engine calls an image: id is the
// digest of its manifest or its configuration, layers are its diffIDs.
func (r *Record) Resolve(id string, layers []string) (approval.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, st := range slices.Backward(r.state.standing) {
		if i := st.Approval.Image; (i.Manifest == id || i.Config == id) && slices.Equal(i.Layers, layers) {
			return i, nil
		}
	}
	return approval.Image{}, r.state.unknown(approval.Image{Manifest: id, Config: id, Layers: layers})
}

// Approvals lists the approvals of the log, the oldest first, with the reason why
// each would be refused now; nil where it would not.
func (r *Record) Approvals() []Listed {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.List(r.clock(), r.final())
}

// Run signs the log's growth and asks the witnesses, once a second where there is
// something new, until ctx ends.
func (r *Record) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	failed := make(chan error, 1)
	wait.Go(func() { // apart: a witness that does not answer must not hold up the signing
		if err := r.ask(ctx); err != nil {
			failed <- err
			cancel()
		}
	})
	err := everySecond(ctx, func() error { return errors.Join(r.flush(false), r.log.Publish()) })
	select {
	case other := <-failed:
		return errors.Join(err, other)
	default:
		return err
	}
}

func everySecond(ctx context.Context, f func() error) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := f(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Close writes and signs what is there and closes the log.
func (r *Record) Close() error {
	return errors.Join(r.flush(true), r.log.Close())
}

// Reader reads the log's files as they are on the disk now.
func (r *Record) Reader() (*translog.Reader, error) {
	return translog.NewReader(r.log.Reader(), r.key)
}
