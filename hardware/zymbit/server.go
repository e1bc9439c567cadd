package zymbit

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/hardware"
)

// Limits of the daemon.
const (
	maxClients  = 8
	idleTimeout = time.Minute     // between requests
	waitSlice   = time.Second     // of the library's call for perimeter events
	maxBacklog  = 64              // events kept for a client that comes late or is slow
	sendTimeout = 5 * time.Second // of a reply
)

// Server answers the protocol on a unix socket. One goroutine at a time calls the chip.
type Server struct {
	chip  *Chip
	allow func(uid uint32) bool
	log   *slog.Logger

	mu      sync.Mutex // the chip, and below
	clients map[net.Conn]bool
	recent  []hardware.Tamper
	news    chan struct{} // closed and made anew with each event
	told    uint64        // events so far
}

// NewServer serves chip to peers that allow accepts by the user id the kernel reports.
func NewServer(chip *Chip, allow func(uid uint32) bool, log *slog.Logger) *Server {
	return &Server{chip: chip, allow: allow, log: log, clients: map[net.Conn]bool{}, news: make(chan struct{})}
}

// Serve answers until ctx ends, and watches the perimeter meanwhile.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Add(1)
	go func() { defer wg.Done(); s.watch(ctx) }()
	stop := context.AfterFunc(ctx, func() { l.Close(); s.hangUp() })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if !s.admit(ctx, c) {
			c.Close()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer s.dismiss(c)
			s.converse(ctx, c)
		}()
	}
}

func (s *Server) admit(ctx context.Context, c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil || !s.allow(cred.Uid) {
		s.log.Warn("a client was refused", "reason", "peer")
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) >= maxClients || ctx.Err() != nil {
		return false
	}
	s.clients[c] = true
	return true
}

func (s *Server) dismiss(c net.Conn) {
	s.mu.Lock()
	delete(s.clients, c)
	s.mu.Unlock()
	c.Close()
}

func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.Close()
	}
}

func (s *Server) converse(ctx context.Context, c net.Conn) {
	for {
		_ = c.SetReadDeadline(time.Now().Add(idleTimeout))
		q, err := ReadRequest(c)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.log.Warn("a client was dropped", "error", err)
			}
			return
		}
		if q.Op == OpTampers {
			s.stream(ctx, c)
			return
		}
		a := s.answer(ctx, q)
		clear(q.Data)
		err = s.send(c, a)
		clear(a.Data)
		if err != nil {
			return
		}
	}
}

func (s *Server) send(c net.Conn, a *Reply) error {
	_ = c.SetWriteDeadline(time.Now().Add(sendTimeout))
	return writeFrame(c, a)
}

func (s *Server) answer(ctx context.Context, q *Request) *Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	var a Reply
	var err error
	switch q.Op {
	case OpIdentify:
		var id hardware.Identity
		id, err = s.chip.Identify(ctx)
		a.Identity = &id
	case OpRandom:
		a.Data, err = s.chip.Random(ctx, q.N)
	case OpSeal:
		a.Blob, err = s.chip.Seal(ctx, q.Label, q.Data)
	case OpUnseal:
		a.Data, err = s.chip.Unseal(ctx, q.Label, q.Blob)
	case OpSign:
		a.Data, err = s.chip.Sign(ctx, [32]byte(q.Data))
	case OpIndicate:
		err = s.chip.Indicate(ctx, q.State)
	}
	if err != nil {
		s.log.Warn("the module refused", "op", q.Op, "reason", hardware.ReasonOf(err))
		var typed *hardware.Error
		text := err.Error()
		if errors.As(err, &typed) {
			text = typed.Err.Error()
		}
		return &Reply{Reason: hardware.ReasonOf(err), Text: text[:min(len(text), 512)]}
	}
	return &a
}

// watch asks for perimeter events in slices, so that requests get their turn.
func (s *Server) watch(ctx context.Context) {
	pause := waitSlice
	for ctx.Err() == nil {
		s.mu.Lock()
		err := s.chip.Breaches(waitSlice, s.remember)
		s.mu.Unlock()
		if err != nil {
			s.log.Warn("the perimeter cannot be asked", "error", err)
			pause = min(pause*2, time.Minute)
		} else {
			pause = 10 * time.Millisecond // a moment in which waiting requests take the lock
		}
		select {
		case <-s.chip.clock.After(pause):
		case <-ctx.Done():
		}
	}
}

// remember is called with the lock held.
func (s *Server) remember(t hardware.Tamper) {
	s.log.Warn("perimeter breached", "source", t.Source, "detail", t.Detail)
	s.recent = append(s.recent, t)
	if len(s.recent) > maxBacklog {
		s.recent = s.recent[len(s.recent)-maxBacklog:]
	}
	s.told++
	close(s.news)
	s.news = make(chan struct{})
}

// stream sends every event that is still remembered and then each new one: nobody who
// connects after a breach may miss it.
func (s *Server) stream(ctx context.Context, c net.Conn) {
	_ = c.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() { defer close(gone); _, _ = c.Read(make([]byte, 1)) }()
	var sent uint64
	for {
		s.mu.Lock()
		news := s.news
		fresh := int(min(s.told-sent, uint64(len(s.recent))))
		events := append([]hardware.Tamper(nil), s.recent[len(s.recent)-fresh:]...)
		sent = s.told
		s.mu.Unlock()
		for _, e := range events {
			if s.send(c, &Reply{Tamper: &e}) != nil {
				return
			}
		}
		select {
		case <-news:
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}
