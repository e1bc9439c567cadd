package flash

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"portcullis/images/blockmap"
)

// Journal remembers which ranges of one image were written to one device, so that
// an interrupted run goes on where it was. It is a hint only: what it names is
// read back before it is believed, so a wrong one costs time and nothing else.
type Journal struct {
	f    *os.File
	path string
	done map[int]bool
}

const (
	journalHeader  = "portcullis/flash/v1\n"
	maxJournal     = 1 << 20 // bytes
	journalEntries = int(blockmap.MaxSize / blockmap.Block)
)

// JournalDir is where journals live: $XDG_STATE_HOME/portcullis/flash, by default
// below ~/.local/state (XDG Base Directory Specification 0.8).
func JournalDir() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "portcullis", "flash"), nil
}

// OpenJournal opens or makes the journal of an image on a device.
func OpenJournal(dir string, image blockmap.Digest, device string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(image.String() + "\n" + device))
	j := &Journal{path: filepath.Join(dir, hex.EncodeToString(id[:16])+".journal"), done: map[int]bool{}}
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	j.f = f
	b, err := io.ReadAll(io.LimitReader(f, maxJournal))
	if err != nil {
		f.Close()
		return nil, err
	}
	if !j.parse(b) {
		// Foreign, damaged or empty: begin again.
		if err := j.reset(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return j, nil
}

// parse reads whole lines; the last one may have been cut off.
func (j *Journal) parse(b []byte) bool {
	rest, ok := bytes.CutPrefix(b, []byte(journalHeader))
	if !ok {
		return false
	}
	end := bytes.LastIndexByte(rest, '\n') + 1
	s := bufio.NewScanner(bytes.NewReader(rest[:end]))
	for s.Scan() {
		n, err := strconv.Atoi(s.Text())
		if err != nil || n < 0 || n >= journalEntries {
			clear(j.done)
			return false
		}
		j.done[n] = true
	}
	// A cut-off line would spoil the next one.
	return s.Err() == nil && end == len(rest)
}

func (j *Journal) reset() error {
	if err := j.f.Truncate(0); err != nil {
		return err
	}
	if _, err := j.f.WriteString(journalHeader); err != nil {
		return err
	}
	for n := range j.done {
		if _, err := fmt.Fprintf(j.f, "%d\n", n); err != nil {
			return err
		}
	}
	return nil
}

// Len is the number of ranges that an earlier run wrote.
func (j *Journal) Len() int {
	if j == nil {
		return 0
	}
	return len(j.done)
}

func (j *Journal) has(index int) bool { return j != nil && j.done[index] }

// add notes a range that the device has taken.
func (j *Journal) add(index int) error {
	if j == nil {
		return nil
	}
	if _, err := fmt.Fprintf(j.f, "%d\n", index); err != nil {
		return fmt.Errorf("%s: %w", j.path, err)
	}
	return nil
}

// Remove forgets everything: the run is done, or what was written is not to be believed.
func (j *Journal) Remove() error {
	if j == nil {
		return nil
	}
	j.f.Close()
	return os.Remove(j.path)
}

// Close keeps the journal for the next run.
func (j *Journal) Close() {
	if j != nil {
		j.f.Close()
	}
}
