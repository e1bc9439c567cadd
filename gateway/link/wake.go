package link

import (
	"bytes"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// EtherWake is the protocol number of a magic packet (AMD publication 20213).
const EtherWake = 0x0842

// MagicPacket is what wakes the machine with the address: six bytes of ones and the
// address sixteen times.
func MagicPacket(mac net.HardwareAddr) []byte {
	return append(bytes.Repeat([]byte{0xff}, 6), bytes.Repeat(mac, 16)...)
}

// Wake sends the magic packet for mac out of the port, to that address alone.
func Wake(name string, mac net.HardwareAddr) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("link: wake: %w", err)
	}
	// A datagram socket: the kernel writes the Ethernet header, with the port's own source.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("link: wake: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: EtherWake>>8 | EtherWake&0xff<<8, Ifindex: i.Index, Halen: 6}
	copy(to.Addr[:], mac)
	if err := unix.Sendto(fd, MagicPacket(mac), 0, to); err != nil {
		return fmt.Errorf("link: wake %s through %s: %w", mac, name, err)
	}
	return nil
}
