// Package update changes the release of a running Pi: it writes a bundle into the
// slot that is not in use, puts it on trial, and, once the new release has proven
// itself, commits it. The other slot stays as it is until then: whatever happens,
// one complete release is selected. Only root calls it, through cmd/portcullis.
package update

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"

	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/manifest"
)

// Device is one partition or slot of the card.
type Device interface {
	card.Device
	Size() int64    // bytes
	Sync() error    // what was written is on the medium
	Refresh() error // what is read next comes from the medium
	Close() error
}

// Card gives access to the parts of the card. Opening a part of the slot in use
// for writing fails.
type Card interface {
	Conf() (Device, error)
	Boot(card.Slot) (Device, error)
	System(card.Slot) (Device, error)
}

// Progress is called with the bytes of a stage that are done.
type Progress func(stage string, done, total int64)

// Stages of an update.
const (
	StageWrite = "write"
	StageCheck = "check"
)

// Options of Apply.
type Options struct {
	Card     Card
	Running  *card.Handover // what pi-init said of this boot
	Progress Progress       // may be nil
}

// Result says what Apply did.
type Result struct {
	Changed  bool      `json:"changed"` // false: the release is active or staged already
	Slot     card.Slot `json:"slot"`
	Sequence uint64    `json:"sequence"`
	Kernel   string    `json:"kernel"`
	Digest   string    `json:"manifest_sha256"`
	Written  int64     `json:"written"` // bytes; pieces that were there already are not written
	Restart  bool      `json:"restart"` // the release is started by the next boot
}

// TrustOf is whom a Pi believes about updates: the keys in its own initramfs.
func TrustOf(h *card.Handover) manifest.Trust {
	t := manifest.Trust{Threshold: h.Threshold}
	for _, k := range h.ReleaseKeys {
		t.ReleaseKeys = append(t.ReleaseKeys, ed25519.PublicKey(k))
	}
	return t
}

// runningRelease is the release that pi-init said it started.
func runningRelease(h *card.Handover) (card.Release, error) {
	r := card.Release{Sequence: h.Sequence}
	if n, err := hex.Decode(r.Root[:], []byte(h.RootHash)); err != nil || n != len(r.Root) || len(h.RootHash) != 2*n {
		return r, refuse(ReasonNotPi, "root hash %.80q of this boot cannot be read", h.RootHash)
	}
	return r, nil
}

// Apply reads a bundle from r, writes it into the slot that is not in use and
// puts it on trial. It can be killed at every moment and called again.
func Apply(ctx context.Context, r io.Reader, o Options) (Result, error) {
	b, err := bundle.Open(r, TrustOf(o.Running))
	if err != nil {
		return Result{}, err
	}
	m := &b.Manifest
	res := Result{Sequence: m.Sequence, Kernel: m.Kernel, Digest: b.Digest}
	conf, done, err := openConf(o.Card)
	if err != nil {
		return res, err
	}
	defer done()
	state, err := conf.State()
	if err != nil {
		return res, err
	}
	if err := accept(m, o.Running, state); err != nil {
		return res, err
	}
	target := card.Installed{Slot: state.Active.Slot.Other(), Release: m.Release()}
	if state.Active.Release == target.Release {
		res.Slot = state.Active.Slot
		return res, nil
	}
	res.Slot, res.Restart = target.Slot, true
	s, err := openSlot(o.Card, target.Slot, m)
	if err != nil {
		return res, err
	}
	defer s.close()
	if t := state.Trial; t != nil && t.Installed == target && s.check(ctx, m, nil) == nil {
		return res, conf.SetAutoboot(target.Slot) // staged by an earlier call that was cut off, perhaps
	}
	res.Changed = true
	// From here on the slot holds no release that anybody may start.
	if err := conf.Drop(card.ReasonTrialReplaced); err != nil {
		return res, err
	}
	if res.Written, err = s.write(ctx, b, o.Progress); err != nil {
		return res, err
	}
	if err := s.check(ctx, m, o.Progress); err != nil {
		return res, err
	}
	return res, conf.Try(target)
}

// accept says whether this Pi, in this state, may change to the release m.
func accept(m *bundle.Manifest, h *card.Handover, s card.State) error {
	own, err := runningRelease(h)
	if err != nil {
		return err
	}
	switch {
	case m.Model != h.Model:
		return &bundle.Error{Reason: bundle.ReasonModel, Detail: fmt.Sprintf("the update is for model %s, this is a %s", m.Model, h.Model)}
	case m.Profile != h.Profile:
		return &bundle.Error{Reason: bundle.ReasonProfile, Detail: fmt.Sprintf("a %s update on a %s card", m.Profile, h.Profile)}
	case s.Trial != nil && s.Trial.Release == own:
		// The other slot is the only way back.
		return refuse(ReasonTrialRunning, "release %d is on trial: commit it or take it back first", own.Sequence)
	case s.Active.Release != own:
		return &card.Error{Reason: card.ReasonSlotUnknown, Detail: fmt.Sprintf("this is release %d; the card knows %s", own.Sequence, s)}
	case s.Active.Release == m.Release():
		return nil
	case m.Sequence <= s.Active.Sequence:
		return &bundle.Error{Reason: bundle.ReasonOld, Detail: fmt.Sprintf("release %d is not newer than %d, which is in use", m.Sequence, s.Active.Sequence)}
	}
	return nil
}

// WithConf opens the configuration partition for use.
func WithConf(c Card, use func(*card.Conf) error) error {
	conf, done, err := openConf(c)
	if err != nil {
		return err
	}
	defer done()
	return use(conf)
}

func openConf(c Card) (conf *card.Conf, done func(), err error) {
	d, err := c.Conf()
	if err != nil {
		return nil, nil, err
	}
	if conf, err = card.OpenConf(d, d.Size()); err != nil {
		d.Close()
		return nil, nil, err
	}
	return conf, func() { d.Close() }, nil
}
