// Package netns makes hosts out of network namespaces, for tests and the lab:
// each Host has its own interfaces, routes and firewall, and is joined to others
// by veth pairs or to a virtual machine by a tap. It needs root and Linux.
//
// Nothing is left behind: Close ends the processes that still live in the
// namespace and removes it, and Sweep removes what a killed process left.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// dir is where iproute2 keeps the names, so that `ip netns exec NAME` works too.
const dir = "/run/netns"

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,60}$`)

// Host is one named network namespace. Its methods may be called concurrently.
type Host struct {
	name   string
	handle vnetns.NsHandle
	links  *netlink.Handle
	close  sync.Once
	err    error
}

// New creates the namespace name (lower-case letters, digits, dashes; at most 61) and
// brings its loopback up. It fails when the name exists.
func New(name string) (*Host, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("netns: name %q: lower-case letters, digits and dashes only", name)
	}
	if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
		return nil, fmt.Errorf("netns: %s exists", name)
	}
	var handle vnetns.NsHandle
	err := onThread(func() error {
		var err error
		handle, err = vnetns.NewNamed(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netns: create %s (root is needed): %w", name, err)
	}
	h := &Host{name: name, handle: handle}
	if h.links, err = netlink.NewHandleAt(handle, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("netns: netlink in %s: %w", name, err), h.Close())
	}
	if err := h.Up("lo"); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Name is what `ip netns` calls the host.
func (h *Host) Name() string { return h.name }

// Path is the file that stands for the namespace, for nsenter --net=PATH.
func (h *Host) Path() string { return filepath.Join(dir, h.name) }

// Do runs f on a thread that is inside the namespace: sockets opened and
// processes started by f belong to the host for ever, also after Do returned.
// f must not start goroutines that expect to be inside.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := vnetns.Set(h.handle); err != nil {
			return fmt.Errorf("netns: enter %s: %w", h.name, err)
		}
		return f()
	})
}

// onThread runs f on a locked thread and takes the thread home afterwards. A
// thread that cannot go home is never given back to the scheduler.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := vnetns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("netns: own namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if vnetns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Close ends every process that lives in the namespace (each was started into it by
// its maker) and removes the namespace with its interfaces. It may be called twice.
func (h *Host) Close() error {
	h.close.Do(func() {
		if h.links != nil {
			h.links.Close()
		}
		h.handle.Close()
		h.err = remove(h.name)
	})
	return h.err
}

// FD is the open namespace, for libraries that take one; it is valid until Close.
func (h *Host) FD() int { return int(h.handle) }
