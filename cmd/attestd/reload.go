package main

import (
	"context"
	"crypto/sha256"
	"os"
	"time"

	"portcullis/attestserver/policy"
	"portcullis/internal/event"
)

// policyLook is how often the policy's file is looked at. A change is taken over when
// two looks have shown the same: a file that somebody is just writing may read
// as a shorter, more lenient policy.
const policyLook = 2 * time.Second

// policyFile is the configured policy. One that is refused costs an event and puts
// nothing out of force: a mistake in a file must not make anything lenient.
type policyFile struct {
	path   string // "": none, the built-in policy
	events *event.Writer

	judged [sha256.Size]byte // what was taken or refused last
	seen   [sha256.Size]byte // at the last look
	gone   bool              // it could not be read at the last look, which was told
}

// first is the policy to begin with: the built-in one where the file is not good.
func (f *policyFile) first() *policy.Policy {
	if f.path != "" {
		if p := f.look(true); p != nil {
			return p
		}
	}
	p := policy.Default()
	f.loaded(p)
	return p
}

// look reads the file and returns the policy that is to be in force from now on, nil
// where that does not change. asked: it is judged at once, also where it did not change.
func (f *policyFile) look(asked bool) *policy.Policy {
	b, err := policy.Read(f.path)
	if err != nil {
		if !f.gone || asked {
			f.refused(err)
		}
		f.gone = true
		return nil
	}
	f.gone = false
	sum := sha256.Sum256(b)
	before := f.seen
	f.seen = sum
	if !asked && (sum == f.judged || sum != before) {
		return nil
	}
	f.judged = sum
	p, err := policy.Parse(f.path, b)
	if err != nil {
		f.refused(err)
		return nil
	}
	f.loaded(p)
	return p
}

func (f *policyFile) loaded(p *policy.Policy) {
	f.events.Emit("policy.loaded", event.Fields{"name": p.Name, "rules": len(p.Rules)})
}

func (f *policyFile) refused(err error) {
	f.events.Emit("policy.refused", event.Fields{"file": f.path, "detail": err.Error()})
}

// follow hands each changed policy to set, until ctx ends; hangup asks for a look at once.
func (f *policyFile) follow(ctx context.Context, hangup <-chan os.Signal, every <-chan time.Time, set func(*policy.Policy)) {
	if f.path == "" {
		every = nil
	}
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			asked = true
		case <-every:
		}
		if f.path == "" {
			continue
		}
		if p := f.look(asked); p != nil {
			set(p)
		}
	}
}
