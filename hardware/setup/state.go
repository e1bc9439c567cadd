// Package setup prepares chips for their work, step by step, and remembers what was done:
// the logic of "portcullis root setup-…", "test" and "status". Every step looks first
// and does nothing that was done already. Nothing here is irreversible.
package setup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"portcullis/hardware"
)

// Dir is where the running Pi keeps the state, and SoftHSM its token.
const Dir = "/var/lib/portcullis/root"

// Schema of the state file.
const Schema = "portcullis/root-setup/v1"

// maxState caps the file, in bytes.
const maxState = 64 << 10

// State is what was set up on this machine. It is public.
type State struct {
	Schema  string   `json:"schema"`
	TPM     *TPM     `json:"tpm,omitempty"`
	Zymbit  *Zymbit  `json:"zymbit,omitempty"`
	SoftHSM *SoftHSM `json:"softhsm,omitempty"`
}

// TPM is a prepared TPM.
type TPM struct {
	Done     time.Time         `json:"done"`
	Device   string            `json:"device"`
	Identity hardware.Identity `json:"identity"`
	Handles  map[string]string `json:"handles"` // name → 0x…
	AK       string            `json:"ak_sha256"`
	EK       string            `json:"ek_sha256"`
}

// Zymbit is a prepared Zymbit module.
type Zymbit struct {
	Done     time.Time         `json:"done"`
	Identity hardware.Identity `json:"identity"`
	WakePin  int               `json:"wake_pin"`
}

// SoftHSM is a token of SoftHSM, which protects nothing.
type SoftHSM struct {
	Done   time.Time `json:"done"`
	Module string    `json:"module"`
	Conf   string    `json:"conf"`
	Label  string    `json:"label"`
	Key    string    `json:"key_sha256"` // of the public key, PKIX DER
}

const stateFile = "setup.json"

// Load reads the state in dir; an empty one where there is none.
func Load(dir string) (*State, error) {
	path := filepath.Join(dir, stateFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &State{Schema: Schema}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, err
	}
	s, err := parseState(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func parseState(b []byte) (*State, error) {
	if len(b) > maxState {
		return nil, fmt.Errorf("more than %d bytes", maxState)
	}
	var s State
	if err := hardware.DecodeStrict(b, &s); err != nil {
		return nil, err
	}
	if s.Schema != Schema {
		return nil, fmt.Errorf("schema %q is not %q", s.Schema, Schema)
	}
	return &s, nil
}

// Save replaces the state in dir at once.
func (s *State) Save(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return replace(filepath.Join(dir, stateFile), append(b, '\n'), 0o644)
}

// replace writes a file so that a cut leaves the old or the new one.
func replace(path string, b []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
