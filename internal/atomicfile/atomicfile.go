// Package atomicfile puts a file into its place at once: whoever opens the name
// finds the old content or the new, whole, also after a crash.
package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Replace writes data to a new file (mode 0600) in path's directory, which must be
// there, and gives it the name path. With durable the content and the name are on
// the disk when it returns; without it a power cut may leave an empty file.
func Replace(path string, data []byte, durable bool) error {
	return Write(path, durable, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Write is Replace with what fill writes. Where fill fails the old file stays.
func Write(path string, durable bool, fill func(io.Writer) error) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = fill(tmp)
	if err == nil && durable {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil || !durable {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
