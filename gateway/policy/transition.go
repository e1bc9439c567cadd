package policy

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"time"
)

// Why a transition is refused.
var (
	ErrOtherSession = errors.New("session-not-current") // the call names another session than the newest
	ErrNotOpen      = errors.New("no-session")          // nothing has booted
	ErrBadRequest   = errors.New("bad-request")         // a value out of its range
)

// MaxRun bounds the ttl of one renewal of Run.
const MaxRun = time.Hour

const maxGeneration = 1<<24 - 1

var sessionForm = regexp.MustCompile(`^[a-z2-7]{26}$`)

// OpenBoot begins a session: its flows are all new, older ones are strangers, and
// the grants of the tasks that ran before end with them.
// Opening the session that is booting already changes nothing; a session that
// has moved on is not opened again.
func (p Policy) OpenBoot(session, mac, address string) (Policy, error) {
	if !sessionForm.MatchString(session) {
		return p, fmt.Errorf("%w: session %q is not 26 characters of base32", ErrBadRequest, session)
	}
	hw, err := net.ParseMAC(mac)
	if err != nil || !bytes.Equal(hw, p.Port.MAC) {
		return p, fmt.Errorf("%w: %q is not the known PC %s", ErrBadRequest, mac, p.Port.MAC)
	}
	a, err := netip.ParseAddr(address)
	if err != nil || !a.Is4() || !p.Port.Address.Contains(a) || a == p.Port.Address.Addr() || a == p.Port.Address.Masked().Addr() || a == broadcast(p.Port.Address) {
		return p, fmt.Errorf("%w: %q is not a host address of %s", ErrBadRequest, address, p.Port.Address.Masked())
	}
	if session == p.Session {
		if p.Phase == Boot && a == p.Address {
			return p, nil
		}
		return p, fmt.Errorf("%w: session %s is past its boot", ErrOtherSession, session)
	}
	p.Phase, p.Session, p.Address, p.RunFor, p.Grants = Boot, session, a, 0, nil
	p.Generation++
	if p.Generation > maxGeneration {
		p.Generation = 1
	}
	return p, nil
}

// Broadcast is the port's directed broadcast address.
func (p Port) Broadcast() netip.Addr { return broadcast(p.Address) }

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// SetPhase moves the current session. Run needs a ttl of 1 ms to MaxRun and
// must be renewed before it ends.
func (p Policy) SetPhase(session string, to Phase, ttl time.Duration) (Policy, error) {
	if p.Session == "" {
		return p, fmt.Errorf("%w: nothing has booted", ErrNotOpen)
	}
	if session != p.Session {
		return p, fmt.Errorf("%w: the current session is %s", ErrOtherSession, p.Session)
	}
	if p.Phase == Quarantine && to != Quarantine {
		// It ends with the next session. A call that was on its way when the
		// quarantine came (a renewed run, the end of the boot) must not lift it.
		return p, fmt.Errorf("%w: session %s is quarantined until the next boot", ErrOtherSession, session)
	}
	switch to {
	case Idle, Attest, Quarantine:
		ttl = 0
	case Run:
		if ttl < time.Millisecond || ttl > MaxRun {
			return p, fmt.Errorf("%w: ttl %s; run needs 1ms to %s", ErrBadRequest, ttl, MaxRun)
		}
	case Boot:
		if p.Phase != Boot {
			return p, fmt.Errorf("%w: boot is entered by opening a session only", ErrBadRequest)
		}
		ttl = 0
	default:
		return p, fmt.Errorf("%w: phase %q", ErrBadRequest, to)
	}
	p.Phase, p.RunFor = to, ttl
	return p, nil
}

// Fallback is the policy after a run that was not renewed, a restart, or a lost cable.
func (p Policy) Fallback() Policy {
	if p.Phase == Run {
		p.Phase, p.RunFor = Attest, 0
	}
	return p
}
