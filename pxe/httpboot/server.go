// Package httpboot serves the artefacts of the live session over HTTP/1.1, to
// the leased address only: UEFI HTTP Boot, iPXE and the PC's first program
// fetch from it. GET and HEAD with single ranges, strong validators, no
// listing, no redirect, no error pages.
package httpboot

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"portcullis/internal/event"
	"portcullis/pxe/artefact"
	"portcullis/pxe/ledger"
	"portcullis/pxe/refusal"
	"portcullis/pxe/session"
)

// Limits of the server.
const (
	maxConns      = 16
	maxHeader     = 8 << 10
	headerTimeout = 10 * time.Second
	idleTimeout   = 60 * time.Second
	// pieceTimeout is how long the PC may take for one piece of at most 1 MiB.
	// The slowest firmware that was seen, an emulated one, needs half a second.
	pieceTimeout = 30 * time.Second
	// Requests a second and at once; a boot makes about six. Each costs records
	// in the ledger, so this bounds how fast a PC can fill the disk.
	requestRate  = 4
	requestBurst = 256
)

// Reasons of this package.
const (
	ReasonPath   = "http-path"   // no such URL
	ReasonMethod = "http-method" // not GET or HEAD
	ReasonRange  = "http-range"  // more than one range, or none that can be satisfied
	ReasonRate   = "http-rate"   // too many requests
)

// Sessions is what the server asks about sessions.
type Sessions interface {
	Allow(id, name string) (*artefact.Image, session.Session, error)
	Sent(id, name, transport string, offset, length int64) error
	Void(id, reason string)
}

// Config of a Server; every field is needed.
type Config struct {
	Client   netip.Addr // the leased address; nobody else is talked to
	Base     string     // http://10.77.0.1, with :port where it is not 80
	Sessions Sessions
	Ledger   *ledger.Ledger
	Events   *event.Writer
	Now      func() time.Time
}

// Server is the HTTP boot server.
type Server struct {
	cfg     Config
	limit   *rate.Limiter
	refused *refusal.Log
}

// New makes a server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, limit: rate.NewLimiter(requestRate, requestBurst), refused: refusal.New(cfg.Events, cfg.Now)}
}

// Serve serves on l until ctx ends, and closes l. When it returns, every answer that was
// begun is in the ledger, also one that was cut off.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var answering sync.RWMutex
	defer answering.Lock() // for ever: a request that comes now is not begun
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !answering.TryRLock() {
				panic(http.ErrAbortHandler)
			}
			defer answering.RUnlock()
			s.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      pieceTimeout, // of the head; each piece gets its own
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // a cut connection is reported by us, with its reason
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	defer srv.Close() // cuts what is being answered where the listener failed
	err := srv.Serve(&listener{Listener: l, client: s.cfg.Client, free: make(chan struct{}, maxConns)})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || from.Addr().Unmap() != s.cfg.Client {
		panic(http.ErrAbortHandler)
	}
	if !s.limit.AllowN(s.cfg.Now(), 1) {
		s.refuse(w, http.StatusTooManyRequests, "", "", ReasonRate)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		s.refuse(w, http.StatusMethodNotAllowed, "", "", ReasonMethod)
		return
	}
	sid, name, ok := split(r.URL.Path)
	if !ok || r.URL.RawPath != "" || r.URL.RawQuery != "" {
		s.refuse(w, http.StatusNotFound, "", "", ReasonPath)
		return
	}
	img, current, err := s.cfg.Sessions.Allow(sid, name)
	if err != nil {
		s.refuse(w, http.StatusNotFound, sid, name, reasonOf(err))
		return
	}
	if name == session.Script {
		if img, err = artefact.Bytes(name, []byte(script(s.cfg.Base+Path(sid, ""), current, img))); err != nil {
			s.refuse(w, http.StatusInternalServerError, sid, name, artefact.Reason(err))
			return
		}
	}
	s.answer(w, r, img, current, name)
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, img *artefact.Image, current session.Session, name string) {
	a, _ := img.Artefact(name)
	tag := `"` + a.SHA256 + `"`
	h := w.Header()
	h.Set("Content-Type", names[name])
	h.Set("Accept-Ranges", "bytes")
	h.Set("ETag", tag)
	h.Set("Cache-Control", "no-store")
	want, ok := byteRange{0, a.Size, true}, true
	// If-Range with any other validator than ours means: the whole (RFC 9110 §13.1.5).
	if cond := r.Header.Get("If-Range"); r.Method == http.MethodGet && (cond == "" || cond == tag) {
		want, ok = parseRange(strings.Join(r.Header.Values("Range"), ","), a.Size)
	}
	if !ok {
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(a.Size, 10))
		s.refuse(w, http.StatusRequestedRangeNotSatisfiable, current.ID, name, ReasonRange)
		return
	}
	h.Set("Content-Length", strconv.FormatInt(want.Length, 10))
	status := http.StatusOK
	if !want.Whole {
		status = http.StatusPartialContent
		h.Set("Content-Range", "bytes "+strconv.FormatInt(want.Offset, 10)+"-"+
			strconv.FormatInt(want.Offset+want.Length-1, 10)+"/"+strconv.FormatInt(a.Size, 10))
	}
	t := &transfer{
		server: s, image: img, session: current.ID, name: name, out: w, control: http.NewResponseController(w),
		entry: s.cfg.Ledger.Begin(ledger.Entry{
			Session: current.ID, Artefact: name, Manifest: manifestOf(current), Transport: ledger.HTTP,
			Client: r.RemoteAddr, Offset: want.Offset,
		}),
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		t.end(ledger.Head, nil)
		return
	}
	t.run(want)
}

// refuse answers without a body: no byte of ours is in it.
func (s *Server) refuse(w http.ResponseWriter, status int, sid, name, reason string) {
	s.refused.Note("artefact.refused", reason, event.Fields{"session": sid, "artefact": name, "transport": ledger.HTTP})
	h := w.Header()
	h.Del("ETag")
	h.Del("Content-Type")
	h.Set("Content-Length", "0")
	h.Set("Connection", "close")
	w.WriteHeader(status)
}
