package dhcp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/time/rate"

	"portcullis/internal/event"
	"portcullis/pxe/artefact"
	"portcullis/pxe/ledger"
	"portcullis/pxe/refusal"
	"portcullis/pxe/session"
)

// Replies a second, and at once. A boot needs about six; each is a record in the ledger.
const (
	replyRate  = 2
	replyBurst = 40
)

// Sessions is what the service asks about sessions.
type Sessions interface {
	Boot(ctx context.Context, r session.BootRequest) (session.Session, error)
	Newest() (session.Session, bool)
	End(ctx context.Context, reason string)
}

// Config of a Service; every field is needed.
type Config struct {
	Interface string
	Policy    Policy
	Sessions  Sessions
	Image     func() (*artefact.Image, error) // to boot from now
	Ledger    *ledger.Ledger
	Events    *event.Writer
	Now       func() time.Time
}

// Service answers packets. Handle belongs to one goroutine at a time.
type Service struct {
	cfg     Config
	limit   *rate.Limiter
	refused *refusal.Log
}

// NewService makes a service; Run opens its sockets.
func NewService(cfg Config) *Service {
	return &Service{cfg: cfg, limit: rate.NewLimiter(replyRate, replyBurst), refused: refusal.New(cfg.Events, cfg.Now)}
}

// Handle answers one packet: the bytes to send and where to, or nothing. The
// reply is in the ledger when it returns. It never panics.
func (s *Service) Handle(ctx context.Context, raw []byte, from netip.AddrPort, port int) (reply []byte, to netip.AddrPort) {
	defer func() {
		if p := recover(); p != nil {
			s.dropped(ReasonPanic, raw, fmt.Sprintf("%v\n%s", p, debug.Stack()))
			reply = nil
		}
	}()
	r, reason := Parse(raw, from, port, s.cfg.Policy)
	if reason != "" {
		s.rebooted(ctx, r)
		s.dropped(reason, raw, "")
		return nil, to
	}
	d, detail := s.decide(ctx, r)
	s.effects(ctx, d.Reason)
	if d.Reason == "" && !s.limit.AllowN(s.cfg.Now(), 1) {
		d.Reason = ReasonRate
	}
	if d.Reason == "" {
		reply = d.Reply.ToBytes()
		if err := s.record(r, d, reply); err != nil {
			d.Reason, detail = ReasonLedger, err.Error()
		}
	}
	if d.Reason != "" {
		s.dropped(d.Reason, raw, detail)
		return nil, to
	}
	return reply, d.To
}

// decide opens or finds the session and asks Decide. A boot request ends all
// trust even where it is not answered in the end.
func (s *Service) decide(ctx context.Context, r Request) (Decision, string) {
	current, _ := s.cfg.Sessions.Newest()
	if r.Boots() {
		image, err := s.cfg.Image()
		if err != nil {
			s.cfg.Sessions.End(ctx, session.EndBootRequest)
			return drop(ReasonNoImage), err.Error()
		}
		current, err = s.cfg.Sessions.Boot(ctx, session.BootRequest{
			XID: xid(r.Packet), Firmware: r.Firmware, Image: image,
		})
		var refusal *session.Refusal
		if errors.As(err, &refusal) {
			return drop(Reason(refusal.Reason)), refusal.Error()
		}
	}
	return Decide(r, s.cfg.Policy, View{
		ID: current.ID, Firmware: current.Firmware, Live: current.Live(), Claimed: current.State == session.Claimed,
	}), ""
}

// rebooted ends the trust in a machine that runs its firmware again, in a way
// that cannot boot here.
func (s *Service) rebooted(ctx context.Context, r Request) {
	if current, _ := s.cfg.Sessions.Newest(); r.FromFirmware() && current.State == session.Claimed {
		s.cfg.Sessions.End(ctx, session.EndBootRequest)
	}
}

// effects are what a message without an answer does.
func (s *Service) effects(ctx context.Context, reason Reason) {
	current, ok := s.cfg.Sessions.Newest()
	switch {
	case !ok:
	case reason == ReasonDeclined:
		// The only address that there is to give is said to be in use: nobody
		// can be trusted to be the PC.
		s.cfg.Sessions.End(ctx, session.EndDeclined)
	case reason == ReasonReleased && current.State == session.Claimed:
		// EDK2 releases its lease before it starts what it has loaded, so only
		// the release of a running machine means that it goes away.
		s.cfg.Sessions.End(ctx, session.EndReleased)
	}
}

func (s *Service) record(r Request, d Decision, reply []byte) error {
	current, _ := s.cfg.Sessions.Newest()
	err := s.cfg.Ledger.Packet(ledger.Entry{
		Session: current.ID, Artefact: d.Name, Manifest: hex.EncodeToString(current.Manifest[:]),
		Transport: ledger.DHCP, Client: d.To.String(),
	}, reply)
	if err == nil {
		f := event.Fields{"type": d.Name, "class": r.Class.String(), "session": current.ID, "port": r.Port}
		if r.Firmware != "" {
			f["arch"] = r.Arch.String()
		}
		s.cfg.Events.Emit("dhcp.reply", f)
	}
	return err
}

func (s *Service) dropped(reason Reason, raw []byte, detail string) {
	f := event.Fields{"mac": senderOf(raw)}
	if detail != "" {
		f["detail"] = detail
	}
	if reason.Alarm() {
		f["alarm"] = true
	}
	if reason == ReasonMalformed {
		f["packet"] = hex.EncodeToString(raw[:min(len(raw), 320)])
	}
	s.refused.Note("dhcp.drop", string(reason), f)
}

// Counts returns how many packets were dropped for each reason.
func (s *Service) Counts() map[string]uint64 { return s.refused.Counts() }

// senderOf reads chaddr of a packet that may be anything.
func senderOf(raw []byte) string {
	if len(raw) < 34 {
		return ""
	}
	return net.HardwareAddr(raw[28:34]).String()
}

func xid(p *dhcpv4.DHCPv4) uint32 {
	t := p.TransactionID
	return uint32(t[0])<<24 | uint32(t[1])<<16 | uint32(t[2])<<8 | uint32(t[3])
}
