package witness

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"portcullis/internal/translog"
)

// Client asks one witness. It may be used concurrently.
type Client struct {
	URL  string // submission and monitoring prefix, without a slash at its end
	Key  *Key
	HTTP *http.Client

	mu   sync.Mutex
	seen *translog.Checkpoint // that it has cosigned for us last, as far as we know
}

// Cosign shows the witness the log as it is now and returns its signature line,
// verified. Where the witness has seen more of the log than there is, and can show
// it with the log's own signature, the error is ReasonConflict with that size:
// this is an old copy of the log, or another one under its key.
func (c *Client) Cosign(ctx context.Context, r *translog.Reader, log note.Verifier) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		if err := c.recall(ctx, log); err != nil {
			return nil, err
		}
	}
	line, err := c.submit(ctx, r, log)
	if Reason(err) == ReasonConflict { // somebody else has shown it more, or it has forgotten
		if err = c.recall(ctx, log); err == nil {
			line, err = c.submit(ctx, r, log)
		}
	}
	return line, err
}

// Seen is what the witness has shown of this log, signed by the log; nil for nothing.
func (c *Client) Seen() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		return nil
	}
	return c.seen.Note
}

// recall asks the witness what it has seen. It believes only what the log has signed.
func (c *Client) recall(ctx context.Context, log note.Verifier) error {
	status, body, err := c.call(ctx, http.MethodGet, "/"+originHash(log.Name())+"/checkpoint", nil)
	switch {
	case err != nil:
		return err
	case status == http.StatusNotFound:
		c.seen = &translog.Checkpoint{Origin: log.Name()}
		return nil
	case status != http.StatusOK:
		return refuse(ReasonUnreachable, "%s answers %d", c.URL, status)
	}
	seen, err := translog.ParseCheckpoint(body, log)
	if err != nil {
		return refuse(ReasonUnreachable, "%s shows a checkpoint that is not of this log: %v", c.URL, err)
	}
	// It may be kept (Seen): what the witness wrote beside the log's signature is not.
	if seen.Note, err = onlySignature(body, log); err != nil {
		return err
	}
	c.seen = seen
	return nil
}

func (c *Client) submit(ctx context.Context, r *translog.Reader, log note.Verifier) ([]byte, error) {
	now := r.Checkpoint
	if c.seen.Size > now.Size {
		return nil, &Error{ReasonConflict, c.Key.name + " has seen " + strconv.FormatInt(c.seen.Size, 10) + " entries, there are " + strconv.FormatInt(now.Size, 10), c.seen.Size}
	}
	proof, err := r.Consistency(c.seen)
	if translog.Reason(err) == translog.ReasonFork {
		return nil, refuse(ReasonProof, "%s has seen another log under this key: %v", c.Key.name, err)
	}
	if err != nil {
		return nil, err
	}
	q := request{c.seen.Size, proof, now.Note}
	status, body, err := c.call(ctx, http.MethodPost, "/add-checkpoint", q.encode())
	if err != nil {
		return nil, err
	}
	switch status {
	case http.StatusOK:
	case http.StatusConflict:
		return nil, refuse(ReasonConflict, "%s has seen %.20q entries, not %d", c.Key.name, strings.TrimSpace(string(body)), c.seen.Size)
	case http.StatusNotFound:
		return nil, refuse(ReasonUnknownLog, "%s does not know %s", c.Key.name, log.Name())
	default: // also 422: that it is no continuation would have been seen here, against what the log itself has signed
		return nil, refuse(ReasonUnreachable, "%s answers %d: %.200q", c.URL, status, body)
	}
	line, err := c.line(now, body)
	if err == nil {
		c.seen = now
	}
	return line, err
}

// line finds the witness's signature in its answer and verifies it.
func (c *Client) line(now *translog.Checkpoint, answer []byte) ([]byte, error) {
	text, _, _ := strings.Cut(string(now.Note), "\n\n")
	n, err := note.Open(append([]byte(text+"\n\n"), answer...), note.VerifierList(c.Key))
	if err != nil {
		return nil, refuse(ReasonSignature, "%s: %v", c.Key.name, err)
	}
	// An answer may bring text of its own along, in front of the signature: that is over both then.
	if n.Text != text+"\n" {
		return nil, refuse(ReasonSignature, "%s has signed something else than the checkpoint", c.Key.name)
	}
	return []byte("— " + n.Sigs[0].Name + " " + n.Sigs[0].Base64 + "\n"), nil
}

func (c *Client) call(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	q, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, refuse(ReasonUnreachable, "%v", err)
	}
	a, err := c.HTTP.Do(q)
	if err != nil {
		return 0, nil, refuse(ReasonUnreachable, "%v", err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, maxRequest))
	if err != nil {
		return 0, nil, refuse(ReasonUnreachable, "%v", err)
	}
	return a.StatusCode, b, nil
}
