package tpm2

import (
	"context"
	"errors"

	"portcullis/hardware"
)

// HandleState says what is at a handle.
type HandleState string

// States.
const (
	HandleFree    HandleState = "free"    // nothing: it will be made when it is needed
	HandleOurs    HandleState = "ours"    // what we would make
	HandleForeign HandleState = "foreign" // something else: choose another handle
)

// Handle is one of the handles that the configuration names.
type Handle struct {
	Name   string      `json:"name"` // srk, ak, counter, revocation
	Handle uint32      `json:"handle"`
	State  HandleState `json:"state"`
}

// Handles looks at every handle of the configuration and changes nothing.
func (t *TPM) Handles(ctx context.Context) ([]Handle, error) {
	var out []Handle
	err := t.do(ctx, "handles", func() error {
		for _, h := range []struct {
			name   string
			handle uint32
			look   func() (bool, error)
		}{
			{"srk", t.cfg.SRK, func() (bool, error) {
				k, err := t.readKey(t.cfg.SRK)
				if k != nil && !isStorageKey(&k.Public) {
					return false, refuse(ReasonHandleForeign, "not a storage key")
				}
				return k != nil, err
			}},
			{"ak", t.cfg.AK, func() (bool, error) { k, err := t.readAK(); return k != nil, err }},
			{"counter", t.cfg.NVIndex, func() (bool, error) { e, _, err := t.counterState(t.cfg.NVIndex); return e, err }},
			{"revocation", t.cfg.Revocation, func() (bool, error) { e, _, err := t.counterState(t.cfg.Revocation); return e, err }},
		} {
			s := HandleFree
			there, err := h.look()
			var e *hardware.Error
			switch {
			case errors.As(err, &e) && e.Reason == ReasonHandleForeign:
				s = HandleForeign
			case err != nil:
				return err
			case there:
				s = HandleOurs
			}
			out = append(out, Handle{h.name, h.handle, s})
		}
		return nil
	})
	return out, err
}
