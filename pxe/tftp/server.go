// Package tftp serves the unified kernel image to UEFI PXE over TFTP (RFC 1350,
// 2347, 2348, 2349) with the library pin/tftp behind a gate: one name a
// session, octet mode, the leased address, few transfers at a time.
//
// The library is used in its plain mode only. Its single-port mode can be
// crashed from the network, and its anticipating mode dies of a reader's error,
// which is how a chunk that fails its check ends a transfer here.
package tftp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	pin "github.com/pin/tftp/v3"
	"golang.org/x/time/rate"

	"portcullis/internal/event"
	"portcullis/internal/room"
	"portcullis/pxe/artefact"
	"portcullis/pxe/ledger"
	"portcullis/pxe/refusal"
	"portcullis/pxe/session"
)

const (
	// blockSize fills an Ethernet frame: 1500 less the headers of IP, UDP and TFTP.
	blockSize = 1468
	// retransmitAfter and retries: the library's own 5 s and random pause make
	// one lost packet cost six seconds.
	retransmitAfter = time.Second
	retries         = 5

	perClient = 2 // transfers; a firmware's size probe may still be dying when the real one begins
	overall   = 8
)

// Sessions is what the server asks about sessions.
type Sessions interface {
	Allow(id, name string) (*artefact.Image, session.Session, error)
	Sent(id, name, transport string, offset, length int64) error
	Void(id, reason string)
}

// Config of a Server; every field is needed.
type Config struct {
	Client   netip.Addr // the leased address
	Sessions Sessions
	Ledger   *ledger.Ledger
	Events   *event.Writer
	Now      func() time.Time
}

// Server is the TFTP server.
type Server struct {
	cfg     Config
	refused *refusal.Log
	room    *room.Room[netip.Addr] // for transfers
}

// New makes a server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, refused: refusal.New(cfg.Events, cfg.Now), room: room.New[netip.Addr](overall, perClient)}
}

// errClosed is all that a client learns when it is not served: the library
// sends the text of an error as it is.
var errClosed = errors.New("no such file")

// Serve serves requests that arrive on conn until ctx ends, and closes conn.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	srv := pin.NewServer(s.read, nil)
	srv.SetTimeout(retransmitAfter)
	srv.SetRetries(retries)
	srv.SetBackoff(func(int) time.Duration { return 0 })
	// The gate is no *net.UDPConn, so the library cannot know the MTU.
	srv.SetBlockSizeNegotiation(false)
	srv.SetBlockSize(blockSize)
	stop := context.AfterFunc(ctx, srv.Shutdown)
	defer stop()
	err := srv.Serve(&gate{
		PacketConn: conn, client: s.cfg.Client, limit: rate.NewLimiter(requestRate, requestBurst),
		refused: s.refused, now: s.cfg.Now,
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// read is the library's handler of one read request; it runs in its own goroutine.
func (s *Server) read(name string, rf io.ReaderFrom) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.refused.Note("artefact.refused", ReasonPanic, event.Fields{
				"transport": ledger.TFTP, "detail": fmt.Sprintf("%v\n%s", p, debug.Stack())})
			err = errClosed
		}
	}()
	out, ok := rf.(pin.OutgoingTransfer)
	if !ok {
		return errClosed
	}
	remote := out.RemoteAddr()
	from := remote.AddrPort()
	leave, ok := s.room.Enter(from.Addr().Unmap())
	if !ok {
		s.refuse("", name, ReasonBusy)
		return errClosed
	}
	defer leave()
	sid, file, ok := split(name)
	if !ok {
		s.refuse("", "", ReasonName)
		return errClosed
	}
	img, current, err := s.cfg.Sessions.Allow(sid, file)
	if err != nil {
		s.refuse(sid, file, reasonOf(err))
		return errClosed
	}
	return s.send(out, rf, img, current, file, from.String())
}

func (s *Server) send(out pin.OutgoingTransfer, rf io.ReaderFrom, img *artefact.Image, current session.Session, name, client string) error {
	a, _ := img.Artefact(name)
	source, err := img.Reader(name, 0, a.Size)
	if err != nil {
		return errClosed
	}
	defer source.Close()
	out.SetSize(a.Size) // several UEFI implementations do not boot without tsize
	t := &transfer{
		server: s, source: source, session: current.ID, name: name,
		entry: s.cfg.Ledger.Begin(ledger.Entry{
			Session: current.ID, Artefact: name, Manifest: hex.EncodeToString(current.Manifest[:]),
			Transport: ledger.TFTP, Client: client,
		}),
	}
	_, err = rf.ReadFrom(t)
	t.finish(err)
	return nil // whatever had to be said, the library has said it
}

func (s *Server) refuse(sid, name, reason string) {
	s.refused.Note("artefact.refused", reason, event.Fields{"session": sid, "artefact": name, "transport": ledger.TFTP})
}
