package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"portcullis/internal/atomicfile"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
)

// stateVersion of the file. A file of another version is not read.
const stateVersion = 1

// state is what the guard loaded and made: all else in the engine is a stranger's.
// It is one file, replaced at once before the engine is asked for the effect.
type state struct {
	path string
	mu   sync.Mutex
	file stateFile
}

type stateFile struct {
	Version    int                    `json:"version"`
	Images     map[string]loadedImage `json:"images"`     // by each ID that a store may call it
	Containers map[string]madeByGuard `json:"containers"` // by ID
}

// loadedImage is an image that the guard loaded.
type loadedImage struct {
	Image approval.Image `json:"image"`
	Trees []treeOf       `json:"trees"` // a list of files for each layer, the lowest first
}

// madeByGuard is a container that the guard made.
type madeByGuard struct {
	Spec    engine.Spec    `json:"spec"`
	Image   approval.Image `json:"image"`
	Purpose string         `json:"purpose"`
	Created time.Time      `json:"created"`
	// Permission of the last start; its index is -1 before the first.
	Permission approval.Permission `json:"permission"`
	Permitted  bool                `json:"permitted"`
	Own        bool                `json:"own,omitempty"` // of StartOwn
	// The engine was asked to start it, and it was not let go: there may be places to mount over already.
	Begun bool `json:"begun,omitempty"`
}

func openState(dir string) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("guard: state: %w", err)
	}
	s := &state{path: filepath.Join(dir, "guard.json")}
	b, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("guard: state: %w", err)
	}
	if err == nil {
		// An unreadable file is an empty one: what runs then is a stranger's and is ended.
		if json.Unmarshal(b, &s.file) != nil || s.file.Version != stateVersion {
			s.file = stateFile{}
		}
	}
	s.file.Version = stateVersion
	if s.file.Images == nil {
		s.file.Images = map[string]loadedImage{}
	}
	if s.file.Containers == nil {
		s.file.Containers = map[string]madeByGuard{}
	}
	return s, nil
}

func (s *state) image(id string) (loadedImage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.file.Images[id]
	return i, ok
}

func (s *state) container(id string) (madeByGuard, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.file.Containers[id]
	return c, ok
}

// containers is a copy.
func (s *state) containers() map[string]madeByGuard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.file.Containers)
}

func (s *state) images() map[string]loadedImage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.file.Images)
}

// change applies f and writes the file. Where that fails nothing has changed.
func (s *state) change(f func(*stateFile)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := stateFile{Version: stateVersion, Images: maps.Clone(s.file.Images), Containers: maps.Clone(s.file.Containers)}
	f(&next)
	b, err := json.Marshal(next)
	if err == nil {
		err = atomicfile.Replace(s.path, b, true)
	}
	if err != nil {
		return fmt.Errorf("guard: state: %w", err)
	}
	s.file = next
	return nil
}
