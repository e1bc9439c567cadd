package ledger

import (
	"path/filepath"

	"portcullis/internal/journal"
)

// File is the name of the ledger in pxed's part of the state directory.
const File = "served-ledger"

// Path returns where pxed keeps the ledger under the state directory.
func Path(stateDir string) string { return filepath.Join(stateDir, "pxed", File) }

// Line is an entry with its place in the chain.
type Line struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
	Entry
}

// Read hands every entry of the ledger at path to each, in order, and verifies
// the chain meanwhile. The first record that is wrong ends it as a
// *journal.BrokenError. The file is not changed; pxed may be writing it.
func Read(path string, each func(Line) error) (journal.Report, error) {
	return journal.ReadFile(path, func(r journal.Record) error {
		e, err := decode(r.Payload)
		if err != nil {
			return err
		}
		return each(Line{Seq: r.Seq, Hash: r.Hash.String(), Entry: e})
	})
}
