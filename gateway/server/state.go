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
}

type storedGrant struct {
	ID         string `json:"id"`
	Task       string `json:"task"`
	Target     string `json:"target"`
	NotAfterMS int64  `json:"not_after_ms"`
}

func encodeState(p policy.Policy) ([]byte, error) {
	p = p.Fallback()
	s := stateFile{Version: stateVersion, Phase: p.Phase, Session: p.Session, Generation: p.Generation, Address: p.Address, Grants: []storedGrant{}}
	for _, g := range p.Grants {
		s.Grants = append(s.Grants, storedGrant{g.ID, g.Task, g.Target.String(), g.NotAfter.UnixMilli()})
	}
	return json.Marshal(s)
}

// decodeState makes the policy that the file holds, by the same transitions
// that made it once; a file that they refuse is refused.
func decodeState(port policy.Port, b []byte) (policy.Policy, error) {
	p := policy.Initial(port)
	var s stateFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return p, fmt.Errorf("server: state file: %w", err)
	}
	if s.Version != stateVersion {
		return p, fmt.Errorf("server: state file: version %d is unknown", s.Version)
	}
	var err error
	next := p
	if s.Session != "" {
		if next, err = next.OpenBoot(s.Session, port.MAC.String(), s.Address.String()); err != nil {
			return p, fmt.Errorf("server: state file: %w", err)
		}
		if next, err = next.SetPhase(s.Session, s.Phase, 0); err != nil {
			return p, fmt.Errorf("server: state file: %w", err)
		}
	} else if s.Phase != policy.Idle || len(s.Grants) > 0 {
		return p, fmt.Errorf("server: state file: phase %q with %d grants but no session", s.Phase, len(s.Grants))
	}
	if s.Generation < 1 || s.Generation >= 1<<24 {
		return p, fmt.Errorf("server: state file: generation %d", s.Generation)
	}
	next.Generation = s.Generation
	for _, g := range s.Grants {
		t, err := policy.ParseTarget(g.Target)
		if err != nil || len(next.Grants) >= policy.MaxGrants {
			return p, fmt.Errorf("server: state file: grant %s: %w", g.ID, err)
		}
		next.Grants = append(next.Grants, policy.Grant{ID: g.ID, Task: g.Task, Target: t, NotAfter: time.UnixMilli(g.NotAfterMS)})
	}
	return next, nil
}

// loadState reads the file; found is false when there is none.
func loadState(path string, port policy.Port) (p policy.Policy, found bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return policy.Initial(port), false, nil
	}
	if err != nil {
		return policy.Initial(port), false, fmt.Errorf("server: state file: %w", err)
	}
	p, err = decodeState(port, b)
	return p, err == nil, err
}

// saveState replaces the file; a crash leaves the old one or the new one.
func saveState(path string, p policy.Policy) error {
	b, err := encodeState(p)
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
