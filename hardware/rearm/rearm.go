// Package rearm binds a volume to the chip of this machine again, after a boot with the
// recovery key: on a card that moved to another Pi, or a Pi whose chip was replaced
// or whose policy no longer held. "portcullis root rearm" calls it. It touches the
// volume's header and keyslots and asks the chip for random bytes and a seal.
package rearm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"
	"time"

	"portcullis/hardware"
	"portcullis/images/card"
	"portcullis/images/luks2"
)

// Reason classifies why nothing was changed, or not everything.
type Reason string

// Reasons.
const (
	ReasonHeader   Reason = "rearm-header"   // the volume's header cannot be read or written
	ReasonRecovery Reason = "rearm-recovery" // this is not the volume's recovery key
	ReasonChip     Reason = "rearm-chip"     // the chip refused to seal
	ReasonBackend  Reason = "rearm-backend"  // a token names a state that rearm does not touch
	// ReasonDowngrade: the volume is bound to two chips together, and would be to one.
	ReasonDowngrade Reason = "rearm-downgrade"
)

// Error is a refusal with its reason.
type Error struct {
	Reason Reason
	Err    error
}

func (e *Error) Error() string { return string(e.Reason) + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Options of Run.
type Options struct {
	Device   luks2.Device
	Size     int64 // of Device, bytes
	Recovery *luks2.RecoveryKey
	Root     hardware.Root
	Backend  hardware.Backend
	Posture  hardware.Posture
	Platform string // self, efi
	// Downgrade allows one chip for a volume that is bound to two together.
	Downgrade bool
	Now       time.Time
	// Progress is told each step as it begins; may be nil.
	Progress func(step string)
}

// Result says what was done.
type Result struct {
	UUID     string `json:"uuid"`
	Slot     int    `json:"slot"`     // the new keyslot
	Removed  []int  `json:"removed"`  // keyslots of chips that were killed
	Repaired bool   `json:"repaired"` // a copy of the header was made anew first
	// Revoked: the chip refuses from now on what it sealed before, on every card and
	// copy of a card. False for a chip that cannot take anything back.
	Revoked bool `json:"revoked"`
}

// Run opens the volume with the recovery key, seals a new secret to the chip, adds a
// keyslot with its token in one write of the header, and only then kills every
// other keyslot of a chip and has the chip refuse what it sealed before. A cut anywhere leaves a volume that the recovery key
// opens, and Run can be called again: it ends with one keyslot of a chip, the new one.
func Run(ctx context.Context, o Options) (*Result, error) {
	say := func(format string, args ...any) {
		if o.Progress != nil {
			o.Progress(fmt.Sprintf(format, args...))
		}
	}
	say("reading the volume's header")
	h, health, err := luks2.Repair(o.Device, o.Size)
	if err != nil {
		return nil, &Error{ReasonHeader, err}
	}
	r := &Result{UUID: h.UUID(), Repaired: !health.Good(), Removed: []int{}}
	old, blobs, people, err := slots(h)
	if err != nil {
		return nil, &Error{ReasonBackend, err}
	}
	if bound, err := backends(h); err != nil {
		return nil, &Error{ReasonBackend, err}
	} else if slices.Contains(bound, hardware.BackendCombined) && o.Backend != hardware.BackendCombined && !o.Downgrade {
		return nil, &Error{ReasonDowngrade, fmt.Errorf("the volume is bound to a TPM and a Zymbit module together; with %s alone either thief of that one chip could open it", o.Backend)}
	}
	if len(people) == 0 {
		return nil, &Error{ReasonRecovery, errors.New("the volume has no keyslot for a recovery key")}
	}
	say("checking the recovery key")
	key, _, err := h.Unlock(o.Device, o.Recovery.Passphrase(), people...)
	if err != nil {
		if luks2.ReasonOf(err) == luks2.ReasonPassphrase {
			return nil, &Error{ReasonRecovery, err}
		}
		return nil, &Error{ReasonHeader, err}
	}
	defer clear(key)
	say("sealing a new secret to the chip")
	var blob json.RawMessage
	if r.Slot, blob, err = bind(ctx, o, h, key, blobs); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err // the new keyslot is not in the header on the disk yet
	}
	say("storing keyslot %d", r.Slot)
	if err := h.Write(o.Device); err != nil {
		return nil, &Error{ReasonHeader, err}
	}
	// From here on the new chip opens the volume: there is no way back, and none needed.
	for _, id := range old {
		say("killing keyslot %d", id)
		if err := kill(h, o.Device, id); err != nil {
			return r, &Error{ReasonHeader, err}
		}
		r.Removed = append(r.Removed, id)
	}
	if err := dropTokens(h, o.Device, r.Slot); err != nil {
		return r, &Error{ReasonHeader, err}
	}
	// Copies of the card have the old keyslot still.
	if c, ok := o.Root.(hardware.Renewer); ok {
		say("ending what the chip sealed before")
		if err := c.Revoke(ctx, blob); err != nil {
			return r, &Error{ReasonChip, err}
		}
		r.Revoked = true
	}
	return r, nil
}

// Bound returns the backends that the tokens of a volume name, each once, in the order
// of the header. Nothing is written.
func Bound(d luks2.Device, size int64) ([]hardware.Backend, error) {
	h, _, err := luks2.Read(d, size)
	if err != nil {
		return nil, &Error{ReasonHeader, err}
	}
	return backends(h)
}

func backends(h *luks2.Header) ([]hardware.Backend, error) {
	var out []hardware.Backend
	for _, t := range h.Tokens() {
		if t.Type != hardware.TokenType {
			continue
		}
		ours, err := hardware.ParseToken(t.JSON)
		if err != nil {
			return nil, fmt.Errorf("token %d: %w", t.ID, err)
		}
		if !slices.Contains(out, ours.Backend) {
			out = append(out, ours.Backend)
		}
	}
	return out, nil
}

// slots finds the keyslots of chips with their blobs, and those of recovery keys, by what tokens say.
func slots(h *luks2.Header) (chips []int, blobs []json.RawMessage, people []int, err error) {
	seen := map[int]bool{}
	for _, t := range h.Tokens() {
		switch t.Type {
		case hardware.TokenType:
			ours, err := hardware.ParseToken(t.JSON)
			if err != nil {
				return nil, nil, nil, fmt.Errorf("token %d: %w", t.ID, err)
			}
			blobs = append(blobs, ours.Blob)
			fallthrough
		case systemdTPM2:
			for _, s := range t.Slots {
				if !seen[s] {
					seen[s] = true
					chips = append(chips, s)
				}
			}
		case luks2.RecoveryTokenType:
			people = append(people, t.Slots...)
		}
	}
	for _, s := range people {
		if seen[s] {
			return nil, nil, nil, fmt.Errorf("keyslot %d is claimed by a chip's token and by a recovery key's", s)
		}
	}
	sort.Ints(chips)
	return chips, blobs, people, nil
}

// systemdTPM2 is the type of the tokens of systemd-cryptenroll --tpm2-device. They name
// the chip that is gone, too.
const systemdTPM2 = "systemd-tpm2"

// bind makes the new keyslot and token in h, which is not written yet. before are the
// blobs whose place it takes.
func bind(ctx context.Context, o Options, h *luks2.Header, volumeKey []byte, before []json.RawMessage) (int, json.RawMessage, error) {
	secret, err := newSecret(ctx, o.Root)
	if err != nil {
		return 0, nil, &Error{ReasonChip, err}
	}
	defer clear(secret)
	seal := o.Root.Seal
	if c, ok := o.Root.(hardware.Renewer); ok {
		seal = func(ctx context.Context, label string, secret []byte) (json.RawMessage, error) {
			return c.SealAfter(ctx, label, secret, before)
		}
	}
	blob, err := seal(ctx, card.SealLabel(h.UUID()), secret)
	if err != nil {
		return 0, nil, &Error{ReasonChip, err}
	}
	passphrase := card.ChipPassphrase(secret)
	defer clear(passphrase)
	slot, err := h.AddSlot(o.Device, volumeKey, passphrase, luks2.ForChip())
	if err != nil {
		return 0, nil, &Error{ReasonHeader, err}
	}
	token, err := (&hardware.Token{Type: hardware.TokenType, Keyslots: []string{strconv.Itoa(slot)}, Version: hardware.TokenVersion,
		State: hardware.StateCommitted, Backend: o.Backend, Posture: o.Posture, Platform: o.Platform,
		Enrolled: o.Now.UTC().Format(time.RFC3339), Blob: blob}).Encode()
	if err != nil {
		return 0, nil, &Error{ReasonChip, err}
	}
	if _, err := h.SetToken(-1, json.RawMessage(token)); err != nil {
		return 0, nil, &Error{ReasonHeader, err}
	}
	return slot, blob, nil
}

// newSecret mixes the chip's bytes into the kernel's: as good as the better of the two.
func newSecret(ctx context.Context, root hardware.Root) ([]byte, error) {
	chip, err := root.Random(ctx, card.ChipSecretSize)
	if err != nil {
		return nil, err
	}
	defer clear(chip)
	if len(chip) != card.ChipSecretSize {
		return nil, fmt.Errorf("%d random bytes instead of %d", len(chip), card.ChipSecretSize)
	}
	secret := make([]byte, card.ChipSecretSize)
	if _, err := io.ReadFull(rand.Reader, secret); err != nil {
		return nil, err
	}
	for i := range secret {
		secret[i] ^= chip[i]
	}
	return secret, nil
}

// kill ends one keyslot. Its area goes first: a header that has forgotten the slot while
// the material is still there would leave nobody to wipe it after a cut.
func kill(h *luks2.Header, d luks2.Device, id int) error {
	if err := h.KillSlot(d, id); err != nil {
		return err
	}
	return h.Write(d)
}

// dropTokens removes chip tokens that name no keyslot any more, other than keep's.
func dropTokens(h *luks2.Header, d luks2.Device, keep int) error {
	changed := false
	for _, t := range h.Tokens() {
		if t.Type != hardware.TokenType && t.Type != systemdTPM2 || len(t.Slots) == 1 && t.Slots[0] == keep {
			continue
		}
		if err := h.RemoveToken(t.ID); err != nil {
			return err
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return h.Write(d)
}
