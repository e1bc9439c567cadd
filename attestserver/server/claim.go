package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/channel"
	"portcullis/attestserver/protocol"
	"portcullis/internal/event"
)

// decideTime bounds the questions to pxed about one claim, where it answers.
const decideTime = 3 * time.Second

// holdTime is how long after its connection a claim is held at most that pxed cannot be asked
// about. Nobody stays longer by that than one who takes all of the time for his claim;
// and the agent waits longer still.
const holdTime = channel.ClaimTime + decideTime

// welcome brings one connection from accept to the core, or ends it.
func (s *Server) welcome(ctx context.Context, raw net.Conn) {
	until, cancel := context.WithTimeout(ctx, holdTime)
	defer cancel()
	conn, err := s.gateway.Accept(ctx, raw)
	if err != nil {
		reason := channel.ReasonTLS
		var refused *channel.RefusedError
		if errors.As(err, &refused) {
			reason = refused.Reason
		}
		s.refusal(raw.RemoteAddr(), reason, err.Error())
		return
	}
	s.o.Events.Emit("agent.connected", event.Fields{"session": conn.Claim.Session, "remote": conn.Remote.String()})
	granted, reason, detail := s.settle(until, conn)
	if granted == nil {
		s.refusal(conn.Remote, reason, detail)
		conn.Refuse(reason)
		return
	}
	granted.conn = conn
	if !s.post(func(c *core) { c.claimed(granted) }) {
		conn.Close()
	}
}

// prepare opens the image that a PC is about to claim.
func (s *Server) prepare(now time.Time) {
	if err := s.o.Images.prepare(now); err != nil {
		s.o.Events.Emit("image.unreadable", event.Fields{"detail": err.Error()})
	}
}

// grant is a claim that pxed granted, now or before.
type grant struct {
	conn    *channel.Conn
	image   *openImage
	session *portcullisv1.Session
	resumed bool
	epoch   *protocol.Epoch // set by the core
}

// settle decides, again where pxed does not answer: one that ended, or comes back from its
// rest, is there in a moment, and each question tells who keeps its place that it is wanted.
// It is asked for all anew, since what it granted may not have come back.
func (s *Server) settle(until context.Context, conn *channel.Conn) (g *grant, reason, detail string) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		g, reason, detail = s.decide(until, conn)
		if reason != protocol.ClaimUnavailable {
			return g, reason, detail
		}
		if s.sleep(until, wait); until.Err() != nil {
			return g, reason, detail
		}
	}
}

// decide settles a genuine claim. Only pxed grants; what attestd adds is that
// the image is the signed one, and that the same key may come again: after a
// restart of attestd or a broken connection.
func (s *Server) decide(ctx context.Context, conn *channel.Conn) (g *grant, reason, detail string) {
	c := conn.Claim
	image, err := s.o.Images.open([32]byte(c.ManifestDigest), s.o.Clock.Now())
	if err != nil {
		return nil, protocol.ClaimImage, err.Error()
	}
	if hex.EncodeToString(c.RootHash) != image.Manifest.Verity.RootHash {
		return nil, protocol.ClaimImage, "another verity root than the manifest's is mounted"
	}
	ctx, cancel := context.WithTimeout(ctx, decideTime)
	defer cancel()
	b, err := s.known(ctx, c.Session)
	switch {
	case connect.CodeOf(err) == connect.CodeNotFound:
		return nil, protocol.ClaimSession, "pxed does not know the session"
	case err != nil:
		return nil, protocol.ClaimUnavailable, err.Error()
	}
	if b.GetId() == c.Session && b.GetState() == portcullisv1.SessionState_SESSION_STATE_CLAIMED &&
		bytes.Equal(b.ClaimKey, c.PublicKey) && bytes.Equal(b.ManifestDigest, c.ManifestDigest) {
		return &grant{image: image, session: b, resumed: true}, "", ""
	}
	answer, err := s.o.Boot.Claim(ctx, connect.NewRequest(&portcullisv1.ClaimRequest{
		Session: c.Session, PublicKey: c.PublicKey, ManifestDigest: c.ManifestDigest, UptimeMs: c.UptimeMs}))
	switch {
	case err != nil:
		return nil, protocol.ClaimUnavailable, err.Error()
	case !answer.Msg.Accepted:
		return nil, answer.Msg.Reason, "refused by pxed"
	case answer.Msg.Session.GetId() != c.Session:
		return nil, protocol.ClaimUnavailable, "pxed answered for another session"
	}
	s.told.Store(answer.Msg.Session) // the stream may be broken
	return &grant{image: image, session: answer.Msg.Session}, "", ""
}

// known is what pxed knows of a session. Where that is the one that pxed told of last, it
// is asked for its newest: such a question neither keeps a pxed from its rest nor ends that
// (FailedPrecondition). At rest nothing has become of the session since.
func (s *Server) known(ctx context.Context, id string) (*portcullisv1.Session, error) {
	if told := s.told.Load(); told.GetId() == id {
		newest, err := s.o.Boot.GetSession(ctx, connect.NewRequest(&portcullisv1.GetSessionRequest{}))
		switch {
		case connect.CodeOf(err) == connect.CodeFailedPrecondition:
			return told, nil
		case err == nil && newest.Msg.Session.GetId() == id:
			return newest.Msg.Session, nil
		}
	}
	r, err := s.o.Boot.GetSession(ctx, connect.NewRequest(&portcullisv1.GetSessionRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	return r.Msg.Session, nil
}
