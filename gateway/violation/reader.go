package violation

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Options of a Reader.
type Options struct {
	NetNS int // file descriptor of a network namespace; 0 = the caller's
	Group uint16
	PC    string // whose evidence is taken; "" where there is one port
	Now   func() time.Time
	Lost  func() // called when the kernel had to throw evidence away; may be nil
}

// Reader receives evidence. The libraries that exist take the four bytes in front
// of a netdev packet's message for attributes and lose it; so it is read here.
type Reader struct{ opt Options }

// NewReader returns a Reader; Run does the work.
func NewReader(opt Options) *Reader { return &Reader{opt: opt} }

// Messages and attributes of the configuration: linux/netfilter/nfnetlink_log.h.
const (
	subsystem = 4
	msgPacket = subsystem << 8 // message 0
	msgConfig = subsystem<<8 | 1

	cfgCommand   = 1
	cfgMode      = 2
	cfgTimeout   = 4 // hundredths of a second
	cfgThreshold = 5 // messages that wake us
	commandBind  = 1
	copyPacket   = 2

	snapLength   = 256
	socketBuffer = 4 << 20
)

// Run binds the group, calls bound, and then got for each packet until ctx ends. got
// must not block for long: meanwhile the kernel keeps at most a few thousand packets.
func (r *Reader) Run(ctx context.Context, bound func(), got func(Violation)) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: r.opt.NetNS})
	if err != nil {
		return fmt.Errorf("violation: open NFLOG: %w", err)
	}
	defer c.Close()
	c.SetReadBuffer(socketBuffer) // more than the default where the host allows it
	awaited, err := r.bind(c)
	if err != nil {
		return fmt.Errorf("violation: bind NFLOG group %d: %w", r.opt.Group, err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	for {
		msgs, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			if r.opt.Lost != nil {
				r.opt.Lost()
			}
			continue
		case err != nil:
			return fmt.Errorf("violation: read NFLOG group %d: %w", r.opt.Group, err)
		}
		for _, m := range msgs {
			switch m.Header.Type {
			case netlink.Error: // an acknowledgement; a refusal has come as err
				if awaited--; awaited == 0 {
					bound()
				}
			case msgPacket:
				if v, ok := DecodeMessage(m.Data, r.opt.PC, r.opt.Now()); ok {
					got(v)
				}
			}
		}
	}
}

// bind asks for the group and tells how many acknowledgements will come. They come
// among the first packets, so nobody waits for them here.
func (r *Reader) bind(c *netlink.Conn) (asked int, err error) {
	mode := binary.BigEndian.AppendUint32(nil, snapLength)
	mode = append(mode, copyPacket, 0)
	for _, a := range []netlink.Attribute{
		{Type: cfgCommand, Data: []byte{commandBind}},
		{Type: cfgMode, Data: mode},
		{Type: cfgTimeout, Data: binary.BigEndian.AppendUint32(nil, 1)},
		{Type: cfgThreshold, Data: binary.BigEndian.AppendUint32(nil, 1)},
	} {
		attrs, err := netlink.MarshalAttributes([]netlink.Attribute{a})
		if err != nil {
			return asked, err
		}
		head := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}
		head = binary.BigEndian.AppendUint16(head, r.opt.Group)
		if _, err := c.Send(netlink.Message{
			Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(head, attrs...),
		}); err != nil {
			return asked, err
		}
		asked++
	}
	return asked, nil
}
