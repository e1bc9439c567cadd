// Package link watches the PC's port: whether it exists, whether the cable
// carries, whether somebody put it into a bridge. It also sets the port's kernel
// parameters. Only gatewayd may call it.
package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// State of a port.
type State struct {
	Index   int // 0 = there is no such interface; a new one means that it was made anew
	Carrier bool
	Master  int // index of a bridge or bond that took it; 0 = none
}

// Read looks the port up.
func Read(name string) (State, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("link: read %s: %w", name, err)
	}
	return stateOf(l), nil
}

func stateOf(l netlink.Link) State {
	a := l.Attrs()
	return State{Index: a.Index, Carrier: a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0, Master: a.MasterIndex}
}

// Watch calls changed with the first state and with each new one until ctx ends.
func Watch(ctx context.Context, name string, changed func(State)) error {
	var last *State
	tell := func() error {
		s, err := Read(name)
		if err != nil {
			return err
		}
		if last == nil || *last != s {
			last = &s
			changed(s)
		}
		return nil
	}
	for {
		err := watchOnce(ctx, tell)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		// The socket overflowed or closed; what was missed is read anew.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func watchOnce(ctx context.Context, tell func() error) error {
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}}); err != nil {
		return fmt.Errorf("link: watch: %w", err)
	}
	if err := tell(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-updates:
			if !ok {
				return nil
			}
			if err := tell(); err != nil {
				return err
			}
		}
	}
}

// Release takes the port out of a bridge or bond.
func Release(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetNoMaster(l)
	}
	if err != nil {
		return fmt.Errorf("link: release %s: %w", name, err)
	}
	return nil
}

// Harden sets the parameters of the port (Documentation/networking/ip-sysctl.rst):
// no IPv6, no redirects, no source routes, ARP answers for the port's own
// address only, strict reverse path.
func Harden(name string) error {
	var errs []error
	for _, p := range []struct{ key, value string }{
		{"ipv6/conf/" + name + "/disable_ipv6", "1"},
		{"ipv4/conf/" + name + "/rp_filter", "1"},
		{"ipv4/conf/" + name + "/arp_ignore", "1"},
		{"ipv4/conf/" + name + "/arp_announce", "2"},
		{"ipv4/conf/" + name + "/proxy_arp", "0"},
		{"ipv4/conf/" + name + "/accept_redirects", "0"},
		{"ipv4/conf/" + name + "/secure_redirects", "0"},
		{"ipv4/conf/" + name + "/send_redirects", "0"},
		{"ipv4/conf/" + name + "/accept_source_route", "0"},
	} {
		err := write(p.key, p.value)
		if p.key[:4] == "ipv6" && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Forward lets the kernel route what comes in by an interface, or not. It is set
// for the two interfaces of a grant alone: the machine as a whole stays a host.
func Forward(name string, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	return write("ipv4/conf/"+name+"/forwarding", value)
}

func write(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0); err != nil {
		return fmt.Errorf("link: sysctl net/%s=%s: %w", key, value, err)
	}
	return nil
}
