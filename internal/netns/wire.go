package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Veth joins two hosts by a cable: aName in a, bName in b, both brought up.
func Veth(a *Host, aName string, b *Host, bName string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.handle)}
	if err := a.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("netns: veth %s:%s - %s:%s: %w", a.name, aName, b.name, bName, err)
	}
	if err := a.Up(aName); err != nil {
		return err
	}
	return b.Up(bName)
}

// VLAN makes what the frames with tag id (1 to 4094) of a's interface parent come out of: an
// interface name in b, which may be a, and brings it up. The kernel needs the module 8021q.
func VLAN(a *Host, parent string, id int, b *Host, name string) error {
	on, err := a.Index(parent)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	// The kernel looks for the name in a: it may be taken there, also by the parent.
	first := fmt.Sprintf("vlan-%d", id)
	attrs.Name, attrs.ParentIndex, attrs.Namespace = first, on, netlink.NsFd(b.handle)
	if err := a.links.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: id}); err != nil {
		return fmt.Errorf("netns: VLAN %d of %s:%s as %s:%s: %w", id, a.name, parent, b.name, name, err)
	}
	if err := b.onLink(first, "rename", func(l netlink.Link) error { return b.links.LinkSetName(l, name) }); err != nil {
		return err
	}
	return b.Up(name)
}

// Tap makes a lasting tap inside the host and brings it up; a virtual machine
// started with Host.Start attaches to it by name.
func (h *Host) Tap(name string) error {
	err := h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(req))); errno != 0 {
			return fmt.Errorf("TUNSETIFF: %w", errno)
		}
		return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	})
	if err != nil {
		return fmt.Errorf("netns: tap %s in %s: %w", name, h.name, err)
	}
	return h.Up(name)
}

// Up brings an interface up.
func (h *Host) Up(name string) error { return h.onLink(name, "up", h.links.LinkSetUp) }

// Down takes an interface down.
func (h *Host) Down(name string) error { return h.onLink(name, "down", h.links.LinkSetDown) }

// DeleteLink removes an interface; of a veth pair both ends go.
func (h *Host) DeleteLink(name string) error { return h.onLink(name, "delete", h.links.LinkDel) }

// SetMAC changes the hardware address of an interface.
func (h *Host) SetMAC(name, mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return fmt.Errorf("netns: %w", err)
	}
	return h.onLink(name, "set address of", func(l netlink.Link) error { return h.links.LinkSetHardwareAddr(l, hw) })
}

// MAC tells the hardware address of an interface.
func (h *Host) MAC(name string) (string, error) {
	var mac string
	err := h.onLink(name, "read", func(l netlink.Link) error {
		mac = l.Attrs().HardwareAddr.String()
		return nil
	})
	return mac, err
}

// Index tells the index of an interface.
func (h *Host) Index(name string) (int, error) {
	var index int
	err := h.onLink(name, "read", func(l netlink.Link) error {
		index = l.Attrs().Index
		return nil
	})
	return index, err
}

// Address adds an address to an interface. An IPv6 one is usable at once (no
// duplicate address detection).
func (h *Host) Address(name string, prefix netip.Prefix) error {
	return h.onLink(name, "add address to", func(l netlink.Link) error {
		bits := prefix.Addr().BitLen()
		a := &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), bits)}}
		if prefix.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		return h.links.AddrAdd(l, a)
	})
}

// Route sends dst through the gateway via.
func (h *Host) Route(dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{
		Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		Gw:  via.AsSlice(),
	}
	if err := h.links.RouteReplace(r); err != nil {
		return fmt.Errorf("netns: route %s via %s in %s: %w", dst, via, h.name, err)
	}
	return nil
}

func (h *Host) onLink(name, verb string, f func(netlink.Link) error) error {
	l, err := h.links.LinkByName(name)
	if err == nil {
		err = f(l)
	}
	if err != nil {
		return fmt.Errorf("netns: %s %s in %s: %w", verb, name, h.name, err)
	}
	return nil
}

// Sysctl writes a key such as net.ipv4.ip_forward of the host.
func (h *Host) Sysctl(key, value string) error {
	return h.Do(func() error {
		path := sysctlPath(key)
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("netns: sysctl %s in %s: %w", key, h.name, err)
		}
		return nil
	})
}

// ReadSysctl reads a key of the host.
func (h *Host) ReadSysctl(key string) (string, error) {
	var value string
	err := h.Do(func() error {
		b, err := os.ReadFile(sysctlPath(key))
		value = strings.TrimSpace(string(b))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("netns: sysctl %s in %s: %w", key, h.name, err)
	}
	return value, nil
}

func sysctlPath(key string) string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
}
