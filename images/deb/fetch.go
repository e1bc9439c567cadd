package deb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Progress is told how many of total bytes are there.
type Progress func(done, total int64)

// Path returns where the store keeps p.
func (s *Store) Path(p Package) string { return filepath.Join(s.Dir, "debs", p.SHA256+".deb") }

// ErrFetch is wrapped by the errors of Fetch that asking the archive anew may cure.
var ErrFetch = errors.New("the archive does not give what was resolved")

// missing returns what the store lacks of l, and how many bytes it has and needs.
func (s *Store) missing(l *Lock) (missing []Package, have, total int64) {
	for _, p := range l.Packages {
		total += p.Size
		if st, err := os.Stat(s.Path(p)); err == nil && st.Size() == p.Size {
			have += p.Size
			continue
		}
		missing = append(missing, p)
	}
	return missing, have, total
}

// Fetch downloads what the store lacks of l. Every file is checked against its
// digest before it enters the store; r must be the request that l came from.
func (s *Store) Fetch(ctx context.Context, r Request, l *Lock, progress Progress) error {
	if missing, _, _ := s.missing(l); len(missing) == 0 {
		return nil
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	missing, have, total := s.missing(l)
	if err := os.MkdirAll(filepath.Join(s.Dir, "debs"), 0o755); err != nil {
		return err
	}
	conf, err := s.configure(ctx, r)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.Dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	env := append(os.Environ(), "APT_CONFIG="+conf, "LC_ALL=C")
	// A few packages a call: apt fetches them in parallel and the caller sees progress.
	const batch = 24
	for len(missing) > 0 {
		n := min(batch, len(missing))
		args := []string{"download", "-q"}
		// Naming version and architecture fetches what was resolved, whatever the archive prefers by now.
		for _, p := range missing[:n] {
			args = append(args, p.Name+"="+p.Version)
		}
		if _, err := runIn(ctx, dir, env, "apt-get", args...); err != nil {
			return fmt.Errorf("%w: %w", ErrFetch, err)
		}
		if err := s.adopt(dir, l); err != nil {
			return err
		}
		for _, p := range missing[:n] {
			if _, err := os.Stat(s.Path(p)); err != nil {
				return fmt.Errorf("%w: %s has another digest", ErrFetch, p)
			}
			have += p.Size
		}
		if progress != nil {
			progress(have, total)
		}
		missing = missing[n:]
	}
	return nil
}

// adopt moves the files of l found in dir into the store.
func (s *Store) adopt(dir string, l *Lock) error {
	known := make(map[string]Package, len(l.Packages))
	for _, p := range l.Packages {
		known[p.SHA256] = p
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".deb") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		digest, err := fileDigest(path)
		if err != nil {
			return err
		}
		p, ok := known[digest]
		if !ok {
			continue // not what was resolved: left to be removed
		}
		if err := os.Rename(path, s.Path(p)); err != nil {
			return err
		}
	}
	return nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
