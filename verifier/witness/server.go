package witness

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/internal/atomicfile"
	"portcullis/internal/translog"
)

// Server is a witness: POST /add-checkpoint, GET /ORIGIN-HASH/checkpoint.
type Server struct {
	dir    string
	logs   map[string]note.Verifier // by origin
	signer *signer

	mu sync.Mutex // a log's state is compared and replaced under it
}

// NewServer makes a witness called name that keeps what it has seen in dir, one
// checkpoint a log, and signs for logs only.
func NewServer(dir, name string, private ed25519.PrivateKey, logs []note.Verifier, now func() time.Time) (*Server, error) {
	key, err := NewKey(name, private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	s := &Server{dir: dir, logs: map[string]note.Verifier{}, signer: &signer{key, private, now}}
	for _, l := range logs {
		if s.logs[l.Name()] != nil {
			return nil, refuse(ReasonKey, "two keys for the log %q", l.Name())
		}
		s.logs[l.Name()] = l
	}
	return s, nil
}

// Key is what others check this witness's signatures with.
func (s *Server) Key() *Key { return s.signer.Key }

func originHash(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(sum[:])
}

func (s *Server) file(origin string) string {
	return filepath.Join(s.dir, originHash(origin)+".checkpoint")
}

// seen returns the newest checkpoint of the log that was cosigned; nil for none.
func (s *Server) seen(log note.Verifier) (*translog.Checkpoint, error) {
	b, err := os.ReadFile(s.file(log.Name()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, refuse(ReasonState, "%v", err)
	}
	c, err := translog.ParseCheckpoint(b, log)
	if err != nil {
		return nil, refuse(ReasonState, "%v", err)
	}
	return c, nil
}

// add checks a request and returns the line with the cosignature.
func (s *Server) add(body []byte) (line []byte, err error) {
	q, err := parseRequest(body)
	if err != nil {
		return nil, err
	}
	origin, _, _ := bytes.Cut(q.checkpoint, []byte("\n"))
	log := s.logs[string(origin)]
	if log == nil {
		return nil, refuse(ReasonUnknownLog, "the log %.120q", origin)
	}
	now, err := translog.ParseCheckpoint(q.checkpoint, log)
	if err != nil {
		return nil, refuse(ReasonSignature, "%v", err)
	}
	if q.old > now.Size {
		return nil, refuse(ReasonRequest, "old size %d of a checkpoint with %d", q.old, now.Size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, err := s.seen(log)
	if err != nil {
		return nil, err
	}
	have := int64(0)
	if seen != nil {
		have = seen.Size
	}
	if q.old != have {
		return nil, &Error{ReasonConflict, fmt.Sprintf("%d entries were seen, not %d", have, q.old), have}
	}
	if err := continues(now, seen, q.proof); err != nil {
		return nil, err
	}
	return s.sign(now, seen)
}

// continues checks that now is the continuation of what was seen.
func continues(now, seen *translog.Checkpoint, proof [][]byte) error {
	if now.Size == 0 && [32]byte(now.Root) != sha256.Sum256(nil) {
		return refuse(ReasonProof, "an empty log with the root of another")
	}
	if seen == nil || seen.Size == 0 || seen.Size == now.Size {
		if len(proof) != 0 {
			return refuse(ReasonProof, "a proof where none is needed")
		}
	}
	if seen == nil {
		return nil
	}
	if err := translog.CheckConsistency(now, seen, proof); err != nil {
		return refuse(ReasonProof, "%v", err)
	}
	return nil
}

// sign remembers the checkpoint, on the disk, and then gives the signature away. One that was seen before
// is there: whoever reads it could have it written again and again.
func (s *Server) sign(now, seen *translog.Checkpoint) ([]byte, error) {
	text, _, _ := strings.Cut(string(now.Note), "\n\n")
	signed, err := note.Sign(&note.Note{Text: text + "\n"}, s.signer)
	if err != nil {
		return nil, refuse(ReasonRequest, "%v", err)
	}
	_, line, _ := bytes.Cut(signed, []byte("\n\n"))
	if seen != nil && seen.Size == now.Size {
		return line, nil
	}
	// Only the log's signature and ours are kept: others could be anything.
	own, err := onlySignature(now.Note, s.logs[now.Origin])
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Replace(s.file(now.Origin), append(own, line...), true); err != nil {
		return nil, refuse(ReasonState, "%v", err)
	}
	return line, nil
}

// onlySignature is a note with no other signature than that of log.
func onlySignature(msg []byte, log note.Verifier) ([]byte, error) {
	n, err := note.Open(msg, note.VerifierList(log))
	if err != nil {
		return nil, refuse(ReasonSignature, "%v", err)
	}
	sig := n.Sigs[0]
	return []byte(n.Text + "\n— " + sig.Name + " " + sig.Base64 + "\n"), nil
}

// statuses are the answers that the protocol gives to each reason.
var statuses = map[string]int{
	ReasonRequest: http.StatusBadRequest, ReasonUnknownLog: http.StatusNotFound, ReasonSignature: http.StatusForbidden,
	ReasonConflict: http.StatusConflict, ReasonProof: http.StatusUnprocessableEntity, ReasonState: http.StatusInternalServerError,
}

// ServeHTTP implements the two calls.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/add-checkpoint" && r.Method == http.MethodPost:
		s.serveAdd(w, r)
	case r.Method == http.MethodGet:
		s.serveSeen(w, r)
	default:
		http.Error(w, "no such call", http.StatusNotFound)
	}
}

func (s *Server) serveAdd(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, ReasonRequest, http.StatusBadRequest)
		return
	}
	line, err := s.add(body)
	var e *Error
	if errors.As(err, &e) {
		if e.Reason == ReasonConflict {
			w.Header().Set("Content-Type", "text/x.tlog.size")
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, strconv.FormatInt(e.Size, 10)+"\n")
			return
		}
		http.Error(w, e.Error(), statuses[e.Reason])
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(line)
}

func (s *Server) serveSeen(w http.ResponseWriter, r *http.Request) {
	for origin, log := range s.logs {
		if r.URL.Path != "/"+originHash(origin)+"/checkpoint" {
			continue
		}
		c, err := s.seen(log)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if c != nil {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Write(c.Note)
			return
		}
	}
	http.Error(w, ReasonUnknownLog, http.StatusNotFound)
}
