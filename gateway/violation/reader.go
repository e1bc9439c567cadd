package violation

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"
)

// Options of a Reader.
type Options struct {
	NetNS int // file descriptor of a network namespace; 0 = the caller's
	Group uint16
	Now   func() time.Time
}

// Reader receives evidence.
type Reader struct {
	opt  Options
	lost atomic.Uint64
}

// NewReader returns a Reader; Run does the work.
func NewReader(opt Options) *Reader { return &Reader{opt: opt} }

// Lost counts the times the kernel had to throw evidence away.
func (r *Reader) Lost() uint64 { return r.lost.Load() }

const socketBuffer = 4 << 20

// Run calls got for each packet until ctx ends. got must not block for long:
// meanwhile the kernel keeps at most a few thousand packets.
func (r *Reader) Run(ctx context.Context, bound func(), got func(Violation)) error {
	nf, err := nflog.Open(&nflog.Config{NetNS: r.opt.NetNS, Group: r.opt.Group, Copymode: nflog.CopyPacket, QThresh: 1, Timeout: 1})
	if err != nil {
		return fmt.Errorf("violation: open NFLOG: %w", err)
	}
	defer nf.Close()
	nf.Con.SetReadBuffer(socketBuffer) // best effort: it needs CAP_NET_ADMIN over the host
	failed := make(chan error, 1)
	err = nf.RegisterWithErrorFunc(ctx, func(a nflog.Attribute) int {
		if v, ok := fromAttribute(a, r.opt.Now()); ok {
			got(v)
		}
		return 0
	}, func(err error) int {
		if errors.Is(err, unix.ENOBUFS) {
			r.lost.Add(1)
			return 0
		}
		var timeout interface{ Timeout() bool }
		if errors.As(err, &timeout) && timeout.Timeout() {
			return 0
		}
		select {
		case failed <- err:
		default:
		}
		return 1
	})
	if err != nil {
		return fmt.Errorf("violation: bind NFLOG group %d: %w", r.opt.Group, err)
	}
	bound()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("violation: read NFLOG: %w", err)
	}
}

func fromAttribute(a nflog.Attribute, now time.Time) (Violation, bool) {
	if a.Prefix == nil {
		return Violation{}, false
	}
	direction, reason, ok := ParsePrefix(*a.Prefix)
	if !ok {
		return Violation{}, false
	}
	v := Violation{Time: now, Direction: direction, Reason: reason}
	var payload, header []byte
	if a.Payload != nil {
		payload = *a.Payload
	}
	if a.HwHeader != nil {
		header = *a.HwHeader
	}
	etherType := uint16(0x0800)
	if a.HwProtocol != nil {
		etherType = *a.HwProtocol
	}
	p := Decode(etherType, payload)
	if reason == "vlan" {
		p.Protocol = "vlan"
	}
	v.Protocol, v.Port = p.Protocol, p.Port
	if p.Source.IsValid() {
		v.Source, v.Destination = p.Source.String(), p.Destination.String()
	} else {
		v.Source = sourceMAC(header)
	}
	return v, true
}
