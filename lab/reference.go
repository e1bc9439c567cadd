package lab

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Reference returns the first max bytes of the only reference of a kind that
// attestd holds.
func (l *Lab) Reference(kind string, max int64) ([]byte, error) {
	found, err := filepath.Glob(filepath.Join(l.StateFile("attestd"), "references", kind, "*"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("lab: %d references of %s, want one", len(found), kind)
	}
	f, err := os.Open(found[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, max))
}
