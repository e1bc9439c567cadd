package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"portcullis/gateway/policy"
)

// stateVersion is the format of the state file.
const stateVersion = 1

// stateFile is what survives a restart beside the kernel's own tables. A run is
// kept as attest: after a restart trust has to be shown again.
type stateFile struct {
	Version    int           `json:"version"`
	Phase      policy.Phase  `json:"phase"`
	Session    string        `json:"session"`
	Generation uint32        `json:"generation"`
	Address    netip.Addr    `json:"address"`
	Grants     []storedGrant `json:"grants"`
	life
}

// life is of what gatewayd a state file is.
type life struct {
	Boot string `json:"boot,omitempty"` // the kernel's boot id then
	// Closed: gatewayd has ended in order, and these are its last words. Without it there
	// may have been others, which were answered and are not here.
	Closed bool `json:"closed,omitempty"`
}

type storedGrant struct {
	ID         string `json:"id"`
	Task       string `json:"task"`
	Target     string `json:"target"`
	NotAfterMS int64  `json:"not_after_ms"`
}

func encodeState(p policy.Policy, l life) ([]byte, error) {
	p = p.Fallback()
	s := stateFile{Version: stateVersion, life: l, Phase: p.Phase, Session: p.Session, Generation: p.Generation, Address: p.Address, Grants: []storedGrant{}}
	for _, g := range p.Grants {
		s.Grants = append(s.Grants, storedGrant{g.ID, g.Task, g.Target.String(), g.NotAfter.UnixMilli()})
	}
	return json.Marshal(s)
}

// decodeState makes the policy that the file holds, by the same transitions
// that made it once; a file that they refuse is refused.
func decodeState(port policy.Port, b []byte) (p policy.Policy, l life, err error) {
	p = policy.Initial(port)
	var s stateFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return p, l, fmt.Errorf("server: state file: %w", err)
	}
	if s.Version != stateVersion {
		return p, l, fmt.Errorf("server: state file: version %d is unknown", s.Version)
	}
	next := p
	if s.Session != "" {
		if next, err = next.OpenBoot(s.Session, port.MAC.String(), s.Address.String()); err != nil {
			return p, l, fmt.Errorf("server: state file: %w", err)
		}
		if next, err = next.SetPhase(s.Session, s.Phase, 0); err != nil {
			return p, l, fmt.Errorf("server: state file: %w", err)
		}
	} else if s.Phase != policy.Idle || len(s.Grants) > 0 {
		return p, l, fmt.Errorf("server: state file: phase %q with %d grants but no session", s.Phase, len(s.Grants))
	}
	if s.Generation < 1 || s.Generation >= 1<<24 {
		return p, l, fmt.Errorf("server: state file: generation %d", s.Generation)
	}
	next.Generation = s.Generation
	for _, g := range s.Grants {
		t, err := policy.ParseTarget(g.Target)
		if err != nil || len(next.Grants) >= policy.MaxGrants {
			return p, l, fmt.Errorf("server: state file: grant %s: %w", g.ID, err)
		}
		next.Grants = append(next.Grants, policy.Grant{ID: g.ID, Task: g.Task, Target: t, NotAfter: time.UnixMilli(g.NotAfterMS)})
	}
	return next, s.life, nil
}

// loadState reads the file; found is false when there is none.
func loadState(path string, port policy.Port) (p policy.Policy, l life, found bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return policy.Initial(port), l, false, nil
	}
	if err != nil {
		return policy.Initial(port), l, false, fmt.Errorf("server: state file: %w", err)
	}
	p, l, err = decodeState(port, b)
	return p, l, err == nil, err
}

// save writes the state file; until that works each call that changes nothing tries again.
func (g *Gateway) save() error {
	err := saveState(g.path, g.policy, life{g.opt.Boot, g.closed})
	g.dirty = err != nil
	if err == nil {
		g.past = pastBoot(g.policy)
	}
	return err
}

// pastBoot is the session that a file with p has past its boot; "" = none. What is answered of it
// without the disk is held by that file after a lost power: it comes back as quarantine (lost).
func pastBoot(p policy.Policy) string {
	if p.Phase == policy.Idle || p.Phase == policy.Boot {
		return ""
	}
	return p.Session
}

// saveState replaces the file; a crash leaves the old one or the new one.
func saveState(path string, p policy.Policy, l life) error {
	b, err := encodeState(p, l)
	if err != nil {
		return fmt.Errorf("server: state file: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".state-*")
	if err != nil {
		return fmt.Errorf("server: state file: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("server: state file: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("server: state directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
