package policy

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Limits of grants.
const (
	MaxGrant  = 7 * 24 * time.Hour // longest life of one grant
	MinGrant  = time.Second
	MaxGrants = 1024 // at one time
)

// ErrGrant is wrapped by every refusal of a grant.
var ErrGrant = errors.New("grant-refused")

// Target is one destination: an IPv4 unicast address, a port, a protocol.
type Target struct {
	Protocol string // "tcp" or "udp"
	Address  netip.Addr
	Port     uint16 // 1..65535
}

// String renders the form that ParseTarget reads.
func (t Target) String() string {
	return netip.AddrPortFrom(t.Address, t.Port).String() + "/" + t.Protocol
}

// Grant opens exactly one target until its end.
type Grant struct {
	ID       string
	Task     string
	Target   Target
	NotAfter time.Time
	// Left is what remains at the moment the policy is applied; it is set by the owner of the clock.
	Left time.Duration
}

// ParseTarget reads host:port/proto, for instance 203.0.113.10:443/tcp. The
// host is an IPv4 literal: a name could mean another machine tomorrow.
func ParseTarget(s string) (Target, error) {
	hostPort, proto, ok := strings.Cut(s, "/")
	if !ok {
		return Target{}, fmt.Errorf("%w: %q: write host:port/proto, for instance 203.0.113.10:443/tcp", ErrGrant, s)
	}
	host, port, ok := strings.Cut(hostPort, ":")
	if !ok {
		return Target{}, fmt.Errorf("%w: %q: the port is missing", ErrGrant, s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != port {
		return Target{}, fmt.Errorf("%w: port %q is not 1 to 65535", ErrGrant, port)
	}
	return NewTarget(proto, host, uint32(n))
}

// NewTarget checks the three parts.
func NewTarget(protocol, address string, port uint32) (Target, error) {
	if protocol != "tcp" && protocol != "udp" {
		return Target{}, fmt.Errorf("%w: protocol %q is neither tcp nor udp", ErrGrant, protocol)
	}
	a, err := netip.ParseAddr(address)
	if err != nil || !a.Is4() {
		return Target{}, fmt.Errorf("%w: %q is not an IPv4 address; names and IPv6 are not supported yet", ErrGrant, address)
	}
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.As4()[0] == 0 || a.As4()[0] >= 240 {
		return Target{}, fmt.Errorf("%w: %s is no unicast address of another network", ErrGrant, a)
	}
	if port < 1 || port > 65535 {
		return Target{}, fmt.Errorf("%w: port %d is not 1 to 65535", ErrGrant, port)
	}
	return Target{Protocol: protocol, Address: a, Port: uint16(port)}, nil
}

var taskForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$`)

// AddGrant makes a grant of life d for a task of the current session and adds it.
// A target that is granted already gets a grant of its own: each ends by itself.
func (p Policy) AddGrant(task string, t Target, d time.Duration, now time.Time) (Policy, Grant, error) {
	if p.Session == "" {
		return p, Grant{}, fmt.Errorf("%w: nothing has booted that a grant could be for", ErrNotOpen)
	}
	if !taskForm.MatchString(task) {
		return p, Grant{}, fmt.Errorf("%w: task %q: 1 to 64 letters, digits, dots, colons, dashes", ErrGrant, task)
	}
	if d < MinGrant || d > MaxGrant {
		return p, Grant{}, fmt.Errorf("%w: life %s is not %s to %s", ErrGrant, d, MinGrant, MaxGrant)
	}
	if p.Port.Address.Contains(t.Address) {
		return p, Grant{}, fmt.Errorf("%w: %s is on the PC's own cable", ErrGrant, t.Address)
	}
	if len(p.Grants) >= MaxGrants {
		return p, Grant{}, fmt.Errorf("%w: %d grants are open already", ErrGrant, len(p.Grants))
	}
	g := Grant{ID: newGrantID(), Task: task, Target: t, NotAfter: now.Add(d), Left: d}
	p.Grants = append(append([]Grant(nil), p.Grants...), g)
	return p, g, nil
}

// RemoveGrant takes a grant away; ok is false when there is none of that id.
func (p Policy) RemoveGrant(id string) (next Policy, g Grant, ok bool) {
	next = p
	next.Grants = nil
	for _, x := range p.Grants {
		if x.ID == id {
			g, ok = x, true
			continue
		}
		next.Grants = append(next.Grants, x)
	}
	return next, g, ok
}

func newGrantID() string {
	var b [10]byte
	rand.Read(b[:])
	return "g-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}
