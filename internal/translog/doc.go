// Package translog keeps an append-only log that others can check: entries
// hashed into a Merkle tree as RFC 6962 has it, stored as plain files in the
// layout of C2SP tlog-tiles, its growth signed as C2SP tlog-checkpoint. It knows
// nothing of what an entry means.
//
//	DIR/checkpoint                     origin, size, root and signature (a signed note)
//	DIR/tile/<L>/<N>[.p/<W>]           hashes, 256 to a full tile
//	DIR/tile/entries/<N>[.p/<W>]       entries, each with its length (u16) before it
//	DIR/tail-<index>.journal           entries since the last full bundles, chained
//
// Append hands an entry to the kernel: it outlives the process from then on.
// Sync waits until it outlives the machine; callers at the same time share one
// fsync. Publish signs what has been appended. A checkpoint is never signed
// before the entries below it are on the disk, so that no power cut can make the
// log sign two trees of which one is not the continuation of the other.
package translog

import (
	"errors"
	"fmt"
)

// MaxEntry is the largest entry in bytes: the length in a bundle has 16 bits.
const MaxEntry = 1<<16 - 1

// Reasons of an Error.
const (
	ReasonSize       = "log-entry-size"      // empty, or longer than MaxEntry
	ReasonBroken     = "log-broken"          // the files contradict each other or the checkpoint
	ReasonRolledBack = "log-rolled-back"     // fewer entries than the checkpoint has signed
	ReasonCheckpoint = "log-checkpoint"      // does not parse, or is not signed by the log's key
	ReasonProof      = "log-proof"           // a proof that does not parse or does not hold
	ReasonIndex      = "log-index"           // no such entry below the checkpoint
	ReasonFork       = "log-not-continued"   // a later checkpoint does not continue an earlier one
	ReasonMissing    = "log-file-missing"    // a tile or bundle is not there
	ReasonTile       = "log-tile-wrong-size" // a tile or bundle of an impossible size
)

// Error is what is wrong with a log; Reason is one of Reason*.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

// ErrClosed is a log that was closed or has failed.
var ErrClosed = errors.New("log is closed")

func refuse(reason, format string, args ...any) *Error {
	return &Error{reason, fmt.Sprintf(format, args...)}
}

// Reason returns the typed reason in err, "" where there is none.
func Reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
