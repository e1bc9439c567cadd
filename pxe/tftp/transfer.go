package tftp

import (
	"errors"
	"io"
	"strings"

	"portcullis/images/manifest"
	"portcullis/internal/event"
	"portcullis/pxe/artefact"
	"portcullis/pxe/ledger"
	"portcullis/pxe/session"
)

// transfer is what the library reads from. It asks for the next block only
// when the one before was acknowledged, so what it has read before has arrived.
type transfer struct {
	server  *Server
	source  *artefact.Reader
	session string
	name    string
	entry   *ledger.Response
	pending []byte // recorded, not yet read by the library
	last    []byte // the block under way
	acked   int64  // bytes before it
	failure error
}

// Read implements io.Reader. It fills p unless the artefact ends, so that the
// library calls it exactly once a block.
func (t *transfer) Read(p []byte) (int, error) {
	if t.failure == nil {
		t.failure = t.confirm()
	}
	n := 0
	for t.failure == nil && n < len(p) {
		if len(t.pending) == 0 {
			if t.failure = t.fetch(); t.failure != nil {
				break
			}
		}
		k := copy(p[n:], t.pending)
		n, t.pending = n+k, t.pending[k:]
	}
	if t.failure == io.EOF {
		t.failure = nil
		t.last = append(t.last[:0], p[:n]...)
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	if t.failure != nil {
		return 0, errClosed
	}
	t.last = append(t.last[:0], p[:n]...)
	return n, nil
}

// fetch checks and records the next piece, before a byte of it is sent. At the end it returns io.EOF.
func (t *transfer) fetch() error {
	if _, _, err := t.server.cfg.Sessions.Allow(t.session, t.name); err != nil {
		return err
	}
	piece, err := t.source.Next(manifest.ChunkSize)
	if err != nil {
		return err
	}
	if err := t.entry.Piece(piece); err != nil {
		return &session.Refusal{Reason: session.ReasonLedger, Err: err}
	}
	t.pending = piece
	return nil
}

// confirm notes the block that has been acknowledged by asking for the next.
func (t *transfer) confirm() error {
	if len(t.last) == 0 {
		return nil
	}
	t.entry.Sent(t.last)
	err := t.server.cfg.Sessions.Sent(t.session, t.name, ledger.TFTP, t.acked, int64(len(t.last)))
	t.acked += int64(len(t.last))
	t.last = t.last[:0]
	return err
}

// finish closes the ledger's response.
func (t *transfer) finish(err error) {
	if err == nil {
		err = t.confirm()
	}
	cause := t.failure
	if cause == nil {
		cause = err
	}
	s := t.server.cfg
	f := event.Fields{"session": t.session, "artefact": t.name, "transport": ledger.TFTP, "bytes": t.entry.Length()}
	switch {
	case cause == nil:
		t.end(ledger.Complete)
	case t.failure == nil && t.acked == 0 && len(t.last) == 0 && aborted(err):
		// UEFI asks for the size first and goes away with ERROR 8 (RFC 2347
		// has it for options that do not please); it comes back at once.
		t.end(ledger.Probe)
		s.Events.Emit("artefact.probe", f)
	case t.failure == nil:
		f["reason"] = "connection-lost"
		t.end(ledger.Cut + ":connection-lost")
		s.Events.Emit("artefact.cut", f)
	default:
		f["reason"] = reasonOf(t.failure)
		t.end(ledger.Cut + ":" + reasonOf(t.failure))
		var differs *manifest.Error
		if errors.As(t.failure, &differs) {
			f["detail"] = differs.Detail
			s.Sessions.Void(t.session, session.VoidArtefact)
		}
		s.Events.Emit("artefact.refused", f)
	}
}

func (t *transfer) end(result string) {
	if err := t.entry.End(result); err != nil {
		t.server.refuse(t.session, t.name, session.ReasonLedger)
	}
}

// aborted recognises the library's report of an ERROR packet before block 1.
func aborted(err error) bool {
	return err != nil && strings.Contains(err.Error(), "sending block 0: code=8")
}

func reasonOf(err error) string {
	var refusal *session.Refusal
	if errors.As(err, &refusal) {
		return refusal.Reason
	}
	return artefact.Reason(err)
}
