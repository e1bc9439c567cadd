package translog

import (
	"encoding/base64"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is a signed statement of a log: of this size, it has this root.
type Checkpoint struct {
	Origin string // names the log; also the name of its key
	Size   int64
	Root   tlog.Hash
	Note   []byte // as signed, verbatim
}

// maxCheckpoint bounds a checkpoint in bytes, cosignatures included.
const maxCheckpoint = 64 << 10

// maxSize is the largest size of a log, in entries: far more than any has, and far below 2^62, from which on
// golang.org/x/mod/sumdb/tlog looks for the halves of a tree without end. Who has a log's key could hold up a
// witness for good by it, and whoever reads the log.
const maxSize = 1 << 48

// body is what is signed (C2SP tlog-checkpoint): three lines.
func body(origin string, size int64, root tlog.Hash) string {
	return origin + "\n" + strconv.FormatInt(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n"
}

func sign(origin string, size int64, root tlog.Hash, signer note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: body(origin, size, root)}, signer)
}

// ParseCheckpoint reads a checkpoint and checks that key has signed it. The
// name of the key is the log's origin.
func ParseCheckpoint(msg []byte, key note.Verifier) (*Checkpoint, error) {
	if len(msg) > maxCheckpoint {
		return nil, refuse(ReasonCheckpoint, "%d bytes, at most %d", len(msg), maxCheckpoint)
	}
	n, err := note.Open(msg, note.VerifierList(key))
	if err != nil {
		return nil, refuse(ReasonCheckpoint, "%v", err)
	}
	lines := strings.SplitN(n.Text, "\n", 4)
	if len(lines) != 4 || lines[0] != key.Name() {
		return nil, refuse(ReasonCheckpoint, "not of the log %q", key.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || size > maxSize || strconv.FormatInt(size, 10) != lines[1] {
		return nil, refuse(ReasonCheckpoint, "size %.24q", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return nil, refuse(ReasonCheckpoint, "root %.64q", lines[2])
	}
	return &Checkpoint{Origin: lines[0], Size: size, Root: tlog.Hash(root), Note: msg}, nil
}
