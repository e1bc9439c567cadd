// Package reference keeps what was enrolled from a PC, for instance its kernel
// text per image and CPU class. attestd is the only one that may call it; it
// touches nothing outside of its directory.
package reference

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"portcullis/attestserver/protocol"
)

// ErrName is a kind or key with other characters than [A-Za-z0-9._-], empty,
// longer than 128, or beginning with a dot.
var ErrName = errors.New("bad reference name")

// ErrExists is a reference that is there already and must not be replaced by
// what a PC says later. An operator removes the file.
var ErrExists = errors.New("reference exists")

// Store is a directory with one file a reference. It implements protocol.References.
type Store struct {
	dir   string
	small cache
}

// Open makes the directory (0700) if needed.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("references: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Get returns the bytes of one reference; fs.ErrNotExist where there is none.
func (s *Store) Get(kind, key string) ([]byte, error) {
	p, err := s.path(kind, key)
	if err != nil {
		return nil, err
	}
	if b, ok := s.small.get(p); ok {
		return b, nil
	}
	before, ok := markOf(p) // before it is read: if it is changed meanwhile, the mark is not of what was read
	b, err := os.ReadFile(p)
	if err == nil && ok {
		s.small.keep(p, before, b)
	}
	return b, err
}

// Open opens one reference; fs.ErrNotExist where there is none.
func (s *Store) Open(kind, key string) (protocol.Reference, error) {
	p, err := s.path(kind, key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return file{f, st.Size()}, nil
}

type file struct {
	*os.File
	size int64
}

func (f file) Size() int64 { return f.size }

// Put stores a reference: it is on the disk when Put returns, whole, and in the
// place of an older one if there was one. Whoever calls it has decided that.
func (s *Store) Put(kind, key string, data []byte) error {
	return s.put(kind, key, os.Rename, whole(data))
}

// Write is Put for what is too large to hold: the reference is what fill writes. What fill
// reads of it is what was written. Where fill fails nothing has changed, and its error is
// returned.
func (s *Store) Write(kind, key string, fill func(protocol.Draft) error) error {
	return s.put(kind, key, os.Rename, func(f *os.File) error { return fill(f) })
}

func whole(data []byte) func(*os.File) error {
	return func(f *os.File) error {
		_, err := f.Write(data)
		return err
	}
}

// PutNew is Put for what is taken once and never replaced: ErrExists.
func (s *Store) PutNew(kind, key string, data []byte) error {
	return s.put(kind, key, os.Link, whole(data)) // fails where the name is taken
}

// put has a file written beside the name and gives it the name by place.
func (s *Store) put(kind, key string, place func(from, to string) error, fill func(*os.File) error) error {
	p, err := s.path(kind, key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(p)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("references: %w", err)
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return fmt.Errorf("references: %w", err)
	}
	defer os.Remove(f.Name())
	if err = fill(f); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("references: write %s: %w", p, err)
	}
	defer s.small.forget(p)
	if err := place(f.Name(), p); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("references: %s/%s: %w", kind, key, ErrExists)
	} else if err != nil {
		return fmt.Errorf("references: %w", err)
	}
	return syncDir(dir)
}

// Keys lists the keys of a kind, sorted.
func (s *Store) Keys(kind string) ([]string, error) {
	if !valid(kind) {
		return nil, fmt.Errorf("references: %w: %q", ErrName, kind)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, kind))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("references: %w", err)
	}
	var keys []string
	for _, e := range entries {
		if valid(e.Name()) {
			keys = append(keys, e.Name())
		}
	}
	return keys, nil
}

func (s *Store) path(kind, key string) (string, error) {
	if !valid(kind) || !valid(key) {
		return "", fmt.Errorf("references: %w: %q/%q", ErrName, kind, key)
	}
	return filepath.Join(s.dir, kind, key), nil
}

func valid(name string) bool {
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
	return name != "" && len(name) <= 128 && name[0] != '.' && strings.Trim(name, allowed) == ""
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("references: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("references: %w", err)
	}
	return nil
}
