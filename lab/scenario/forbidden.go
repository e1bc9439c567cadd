package scenario

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"portcullis/lab"
	"portcullis/lab/wire"
)

// forbidden is one thing the PC tries; the gateway must record it as protocol.
type forbidden struct {
	name     string
	argv     func(*Stage) ([]string, error)
	protocol string
}

const hpcLab = "/usr/lib/portcullis/hpc-lab"

var forbiddenThings = []forbidden{
	{"TCP", tool("send", "tcp", "203.0.113.10:80"), "tcp"},
	{"UDP", tool("send", "udp", "203.0.113.10:7"), "udp"},
	{"DNS", tool("dns", "203.0.113.10", "example.org."), "udp"},
	{"ICMP", func(s *Stage) ([]string, error) { return s.frame(echoRequest) }, "icmp"},
	{"IPv6", func(s *Stage) ([]string, error) { return s.frame(echoRequest6) }, "ip6"},
}

func tool(args ...string) func(*Stage) ([]string, error) {
	return func(*Stage) ([]string, error) { return append([]string{hpcLab}, args...), nil }
}

// forbiddenScene tries everything with a firewall in the phase for trusted PCs
// and no grant: nothing may come out behind the gateway, each try is recorded,
// and the tries end in a ban that ends by itself.
func forbiddenScene() Scene {
	return Scene{
		Name:    "forbidden-traffic",
		Title:   "forbidden TCP, UDP, ICMP, IPv6 and DNS reach nothing behind the gateway, are recorded, and ban",
		Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			before, err := s.World(ctx)
			if err != nil {
				return err
			}
			mark := s.Log.Mark()
			for _, f := range forbiddenThings {
				if err := s.try(ctx, f); err != nil {
					return err
				}
				if err := s.recorded(ctx, mark, f); err != nil {
					return err
				}
			}
			if err := s.untilBanned(ctx, mark); err != nil {
				return err
			}
			after, err := s.World(ctx)
			if err != nil {
				return err
			}
			if n := after.Frames - before.Frames; n != 0 {
				return fmt.Errorf("%d frames came out behind the gateway: %v", n, after.Records[len(before.Records):])
			}
			g, err := s.Gateway(ctx)
			if err != nil {
				return err
			}
			s.Note("0 frames behind the gateway, %d packets dropped and counted, banned", g.ViolationsTotal)
			return s.untilUnbanned(ctx)
		},
	}
}

// try runs one forbidden thing in the PC; it must not succeed.
func (s *Stage) try(ctx context.Context, f forbidden) error {
	argv, err := f.argv(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	r, err := s.Exec(ctx, argv...)
	if err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	// A raw frame is sent without an answer; the others must not get one.
	if r.Exit == 0 && argv[1] != "frame" {
		return fmt.Errorf("%s got through: %q", f.name, r.Stdout)
	}
	if r.Exit != 0 && argv[1] == "frame" {
		return fmt.Errorf("%s: the frame was not sent: %s", f.name, r.Stderr)
	}
	return nil
}

func (s *Stage) recorded(ctx context.Context, mark int, f forbidden) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := s.Log.Wait(ctx, mark, lab.With("violation", "protocol", f.protocol))
	if err != nil {
		return fmt.Errorf("%s is not recorded: %w; recorded: %s", f.name, err, violations(s.Log.Since(mark)))
	}
	return nil
}

// untilBanned repeats a forbidden datagram until the ban, which the kernel
// imposes after a few.
func (s *Stage) untilBanned(ctx context.Context, mark int) error {
	for range 2 * s.Settings.BanAfter {
		for _, e := range s.Log.Since(mark) {
			if e.Name == "ban" {
				return nil
			}
		}
		if err := s.try(ctx, forbiddenThings[1]); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := s.Log.Wait(ctx, mark, lab.Is("ban")); err != nil {
		return fmt.Errorf("no ban after %d forbidden packets: %w", 2*s.Settings.BanAfter, err)
	}
	return nil
}

// untilUnbanned waits for the end of the ban, so that the next scene begins without.
func (s *Stage) untilUnbanned(ctx context.Context) error {
	return until(ctx, s.Settings.BanFor+10*time.Second, "the end of the ban", func() (bool, error) {
		g, err := s.Gateway(ctx)
		return err == nil && len(g.Bans) == 0, err
	})
}

func violations(events []lab.Event) string {
	var out []string
	for _, e := range events {
		if e.Name == "violation" {
			out = append(out, e.Text("direction")+"/"+e.Text("protocol")+"/"+e.Text("reason"))
		}
	}
	return strings.Join(out, " ")
}

// frame is the command line that sends a raw frame to the gateway's port.
func (s *Stage) frame(payload func() (ethertype uint16, p []byte)) ([]string, error) {
	_, gw, err := s.PCPort()
	if err != nil {
		return nil, err
	}
	to, err := net.ParseMAC(gw)
	if err != nil {
		return nil, err
	}
	from, err := net.ParseMAC(s.MAC)
	if err != nil {
		return nil, err
	}
	kind, p := payload()
	f := append(append([]byte{}, to...), from...)
	f = binary.BigEndian.AppendUint16(f, kind)
	return []string{hpcLab, "frame", "eth0", hex.EncodeToString(append(f, p...))}, nil
}

// echoRequest is an ICMP echo request (RFC 792) to the world in IPv4 (RFC 791).
func echoRequest() (uint16, []byte) {
	icmp := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	ip := make([]byte, 20, 28)
	ip[0], ip[8], ip[9] = 0x45, 64, 1
	binary.BigEndian.PutUint16(ip[2:], 28)
	copy(ip[12:], wire.PCAddress.AsSlice())
	copy(ip[16:], wire.World.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return 0x0800, append(ip, icmp...)
}

// echoRequest6 is an ICMPv6 echo request (RFC 4443) to the world in IPv6 (RFC 8200).
func echoRequest6() (uint16, []byte) {
	src, dst := wire.PC6, wire.World6.Addr()
	icmp := []byte{128, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo6(src, dst, icmp)))
	ip := make([]byte, 40, 48)
	ip[0], ip[6], ip[7] = 0x60, 58, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(icmp)))
	copy(ip[8:], src.AsSlice())
	copy(ip[24:], dst.AsSlice())
	return 0x86dd, append(ip, icmp...)
}

func pseudo6(src, dst netip.Addr, payload []byte) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(append(b, 0, 0, 0, 58), payload...)
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
