package netns

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A cable carries frames whatever their addresses, also one that pretends to come
// from the other end: a learning bridge would cut that end off.
func TestCablePassesFramesWithForgedAddresses(t *testing.T) {
	l, err := NewLab("nscable")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hosts := map[string]*Host{}
	for _, n := range []string{"a", "b", "mid"} {
		if hosts[n], err = l.Host(n); err != nil {
			t.Fatal(err)
		}
	}
	a, b, mid := hosts["a"], hosts["b"], hosts["mid"]
	if err := Veth(a, "eth0", mid, "pa"); err != nil {
		t.Fatal(err)
	}
	if err := Veth(b, "eth0", mid, "pb"); err != nil {
		t.Fatal(err)
	}
	if err := mid.Cable("cable", "pa", "pb"); err != nil {
		t.Fatal(err)
	}
	for h, addr := range map[*Host]string{a: "192.0.2.1/24", b: "192.0.2.2/24"} {
		if err := h.Address("eth0", netip.MustParsePrefix(addr)); err != nil {
			t.Fatal(err)
		}
	}
	// a sends a frame from b's address; then b must still get what is sent to it.
	mac, err := b.MAC("eth0")
	if err != nil {
		t.Fatal(err)
	}
	index, err := a.Index("eth0")
	if err != nil {
		t.Fatal(err)
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	err = a.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, hw...)
		frame = append(frame, 0x88, 0xb5) // IEEE 802 local experimental ethertype 1
		return unix.Sendto(fd, append(frame, make([]byte, 46)...), 0, &unix.SockaddrLinklayer{Ifindex: index})
	})
	if err != nil {
		t.Fatal(err)
	}
	in, err := b.ListenPacket("udp", "192.0.2.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := a.ListenPacket("udp", "192.0.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := out.WriteTo([]byte("through"), in.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	in.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 32)
	if n, _, err := in.ReadFrom(buf); err != nil || string(buf[:n]) != "through" {
		t.Fatalf("the other end got %q, %v", buf[:n], err)
	}
}
