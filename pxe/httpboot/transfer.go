package httpboot

import (
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"portcullis/images/manifest"
	"portcullis/internal/event"
	"portcullis/pxe/artefact"
	"portcullis/pxe/ledger"
	"portcullis/pxe/session"
)

// transfer is one body that is being sent.
type transfer struct {
	server  *Server
	image   *artefact.Image
	session string
	name    string
	out     http.ResponseWriter
	control *http.ResponseController
	entry   *ledger.Response
	offset  int64
}

// errPeer marks an end that the PC or the network caused.
var errPeer = errors.New("connection-lost")

func (t *transfer) run(want byteRange) {
	t.offset = want.Offset
	err := t.image.Chunks(t.name, want.Offset, want.Length, t.piece)
	if err == nil {
		t.end(ledger.Complete, nil)
		return
	}
	reason := reasonOf(err)
	t.end(ledger.Cut+":"+reason, err)
	// Not even the length that was promised is kept: the PC sees a broken
	// connection and never takes a part for the whole.
	panic(http.ErrAbortHandler)
}

// piece records the bytes, sends them, and notes what the kernel took.
func (t *transfer) piece(b []byte) error {
	if _, _, err := t.server.cfg.Sessions.Allow(t.session, t.name); err != nil {
		return err
	}
	if err := t.entry.Piece(b); err != nil {
		return &session.Refusal{Reason: session.ReasonLedger, Err: err}
	}
	if err := t.control.SetWriteDeadline(time.Now().Add(pieceTimeout)); err != nil {
		return errPeer
	}
	n, err := t.out.Write(b)
	if err == nil {
		err = t.control.Flush()
	}
	t.entry.Sent(b[:n])
	offset := t.offset
	t.offset += int64(n)
	if err := t.server.cfg.Sessions.Sent(t.session, t.name, ledger.HTTP, offset, int64(n)); err != nil {
		return err
	}
	if err != nil {
		return errPeer
	}
	return nil
}

// end closes the ledger's response and acts on what went wrong.
func (t *transfer) end(result string, cause error) {
	if err := t.entry.End(result); err != nil && cause == nil {
		cause = &session.Refusal{Reason: session.ReasonLedger, Err: err}
	}
	if cause == nil {
		return
	}
	s := t.server.cfg
	f := event.Fields{"session": t.session, "artefact": t.name, "transport": ledger.HTTP, "reason": reasonOf(cause), "bytes": t.entry.Length()}
	var differs *manifest.Error
	switch {
	case errors.As(cause, &differs):
		f["detail"] = differs.Detail
		s.Events.Emit("artefact.refused", f)
		s.Sessions.Void(t.session, session.VoidArtefact)
	case errors.Is(cause, errPeer):
		s.Events.Emit("artefact.cut", f)
	default:
		s.Events.Emit("artefact.refused", f)
	}
}

// reasonOf names an end in one word.
func reasonOf(err error) string {
	var refusal *session.Refusal
	switch {
	case errors.As(err, &refusal):
		return refusal.Reason
	case errors.Is(err, errPeer):
		return errPeer.Error()
	}
	return artefact.Reason(err)
}

func manifestOf(s session.Session) string { return hex.EncodeToString(s.Manifest[:]) }
