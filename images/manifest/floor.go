package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// floorHead begins the one line of a floor file.
const floorHead = "portcullis-floor-v1 "

// Floor remembers the highest manifest version that was ever accepted, in a
// file, so that an older image, however well signed, cannot come back. Where
// the Pi's chip has a counter it replaces this file. A Floor is safe for
// concurrent use by one process.
type Floor struct {
	path string

	mu    sync.Mutex
	value uint64
}

// OpenFloor reads the floor in path. A missing file is floor 0; an unreadable
// or changed one is an error, because starting again at 0 would let every old
// image in.
func OpenFloor(path string) (*Floor, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Floor{path: path}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open floor: %w", err)
	}
	defer f.Close()
	data, err := readSmall(f)
	if err != nil {
		return nil, fmt.Errorf("open floor %s: %w", path, err)
	}
	value, err := parseFloor(string(data))
	if err != nil {
		return nil, refuse(ReasonFloor, "%s: %v", path, err)
	}
	return &Floor{path: path, value: value}, nil
}

// Value returns the highest accepted version, 0 before the first.
func (f *Floor) Value() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.value
}

// Raise sets the floor to version and returns when that is on the disk. The
// same version again is free; a lower one is refused with ReasonVersion.
func (f *Floor) Raise(version uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case version < f.value:
		return refuse(ReasonVersion, "the floor %d does not go down to %d", f.value, version)
	case version == f.value:
		return nil
	}
	next := f.path + ".new"
	// What a crash left behind here was never in force.
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("raise floor: %w", err)
	}
	if err := writeNew(next, 0o600, []byte(formatFloor(version))); err != nil {
		return fmt.Errorf("raise floor: %w", err)
	}
	if err := os.Rename(next, f.path); err != nil {
		return fmt.Errorf("raise floor: %w", err)
	}
	if err := syncDir(filepath.Dir(f.path)); err != nil {
		return fmt.Errorf("raise floor: %w", err)
	}
	f.value = version
	return nil
}

func formatFloor(v uint64) string { return floorHead + strconv.FormatUint(v, 10) + "\n" }

func parseFloor(s string) (uint64, error) {
	digits, ok := strings.CutPrefix(strings.TrimSuffix(s, "\n"), floorHead)
	if !ok {
		return 0, errors.New("not a floor file")
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, err
	}
	if formatFloor(v) != s {
		return 0, errors.New("the number is not written as this program writes it")
	}
	return v, nil
}
