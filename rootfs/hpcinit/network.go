package hpcinit

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/rootfs/boot"
)

// NetworkLimits bound the search for the gateway.
type NetworkLimits struct {
	Carrier time.Duration // until a wired interface has a carrier
	Lease   time.Duration // from the first carrier to a valid lease
}

// DefaultNetworkLimits give a switchless gigabit link time to negotiate and the gateway
// time to restart.
var DefaultNetworkLimits = NetworkLimits{Carrier: 20 * time.Second, Lease: 60 * time.Second}

// network looks for the gateway on every wired interface at once. The first
// one that gets a valid lease keeps it; all others are taken down again.
type network struct {
	limits NetworkLimits
	wired  func(boot.Link) bool
	ask    func(context.Context, boot.Link) (Lease, error)
	setUp  func(index int, up bool) error

	links   map[int]boot.Link // wired ones, by index
	asking  map[int]context.CancelFunc
	leases  chan leaseResult
	lastErr error
}

type leaseResult struct {
	link  boot.Link
	lease Lease
	err   error
}

func newNetwork(limits NetworkLimits) *network {
	return &network{
		limits: limits, wired: isWired, ask: acquire, setUp: boot.SetLink,
		links: map[int]boot.Link{}, asking: map[int]context.CancelFunc{}, leases: make(chan leaseResult),
	}
}

// connect finds the gateway and configures address and route.
func (n *network) connect(ctx context.Context) (boot.Link, Lease, error) {
	link, lease, err := n.find(ctx)
	if err != nil {
		return link, lease, err
	}
	if err := boot.AddAddress(link.Index, lease.Address); err != nil {
		return link, lease, boot.Failf(ReasonAddress, "%w", err)
	}
	if lease.Router.IsValid() {
		if err := boot.AddDefaultRoute(link.Index, lease.Router); err != nil {
			return link, lease, boot.Failf(ReasonAddress, "%w", err)
		}
	}
	return link, lease, nil
}

// find owns the search: link changes and leases come to it over channels.
func (n *network) find(ctx context.Context) (boot.Link, Lease, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := boot.WatchLinks()
	if err != nil {
		return boot.Link{}, Lease{}, boot.Failf(ReasonNoInterface, "%w", err)
	}
	changes := make(chan []boot.Link)
	go boot.Guard(func() error { return watchLinks(ctx, watch, changes) })
	defer watch.Close()
	if err := n.relist(ctx); err != nil {
		return boot.Link{}, Lease{}, boot.Failf(ReasonNoInterface, "%w", err)
	}
	limit := time.NewTimer(n.limits.Carrier)
	defer limit.Stop()
	carrier := false
	for {
		if !carrier && len(n.asking) > 0 {
			carrier = true
			limit.Reset(n.limits.Lease)
		}
		select {
		case links := <-changes:
			if links == nil { // some changes were lost
				n.note(n.relist(ctx))
			}
			for _, l := range links {
				n.update(ctx, l)
			}
		case r := <-n.leases:
			delete(n.asking, r.link.Index)
			if r.err == nil {
				n.stop(cancel)
				n.downOthers(r.link.Index)
				return r.link, r.lease, nil
			}
			n.lastErr = r.err
			// The carrier may have come back while the last question was ending.
			n.update(ctx, n.links[r.link.Index])
		case <-limit.C:
			return boot.Link{}, Lease{}, n.giveUp(cancel)
		case <-ctx.Done():
			return boot.Link{}, Lease{}, n.giveUp(cancel)
		}
	}
}

// stop ends all questions and waits for their ends.
func (n *network) stop(cancel context.CancelFunc) {
	cancel()
	for i := range n.asking {
		if r := <-n.leases; r.err != nil {
			n.lastErr = r.err // it says what was heard
		}
		delete(n.asking, i)
	}
}

// giveUp says how far the search came.
func (n *network) giveUp(cancel context.CancelFunc) error {
	n.stop(cancel)
	n.downOthers(0)
	switch {
	case n.lastErr != nil:
		return n.lastErr
	case len(n.links) == 0:
		return boot.Failf(ReasonNoInterface, "no wired interface within %v: is the card's driver in the image?", n.limits.Carrier)
	default:
		return boot.Failf(ReasonNoCarrier, "%d wired interfaces, none with a carrier within %v", len(n.links), n.limits.Carrier)
	}
}

func (n *network) relist(ctx context.Context) error {
	links, err := boot.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		n.update(ctx, l)
	}
	return nil
}

// update takes in the state of one link: up with what is down, ask where there
// is a carrier, stop asking where it went.
func (n *network) update(ctx context.Context, l boot.Link) {
	if l.Loopback {
		if !l.Up && !l.Gone {
			n.note(n.setUp(l.Index, true))
		}
		return
	}
	if l.Index == 0 {
		return
	}
	known := n.links[l.Index]
	if l.Gone {
		delete(n.links, l.Index)
	} else if known.Index != 0 || n.wired(l) {
		n.links[l.Index] = l
		if !l.Up && known.Index == 0 {
			n.note(n.setUp(l.Index, true))
		}
	} else {
		return
	}
	stop, asking := n.asking[l.Index]
	usable := l.Up && l.Carrier && !l.Gone
	switch {
	case usable && !asking:
		actx, stop := context.WithCancel(ctx)
		n.asking[l.Index] = stop
		go func() {
			r := leaseResult{link: l}
			r.err = boot.Guard(func() (err error) { r.lease, err = n.ask(actx, l); return err })
			stop()
			n.leases <- r
		}()
	case !usable && asking:
		stop()
	}
}

func (n *network) note(err error) {
	if err != nil {
		n.lastErr = boot.Failf(ReasonNoInterface, "%w", err)
	}
}

// downOthers takes every wired interface down but keep: one that does not lead
// to the gateway has no business in this machine.
func (n *network) downOthers(keep int) {
	for i := range n.links {
		if i != keep {
			n.note(n.setUp(i, false))
		}
	}
}

// watchLinks passes link changes on until the watch is closed; nil stands for
// lost ones. Should it end early, the search still ends at its limits.
func watchLinks(ctx context.Context, w *boot.LinkWatch, out chan<- []boot.Link) error {
	for {
		links, err := w.Wait(time.Now().Add(time.Hour))
		switch {
		case errors.Is(err, unix.ENOBUFS):
			links = nil
		case err != nil:
			return err
		case len(links) == 0:
			continue
		}
		select {
		case out <- links:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isWired tells a card with a cable from everything else that frames like
// Ethernet: bridges and other software links have no device, wireless cards a phy.
func isWired(l boot.Link) bool {
	if !l.Ethernet {
		return false
	}
	dir := "/sys/class/net/" + l.Name
	_, err := os.Stat(dir + "/device")
	if err != nil {
		return false
	}
	_, err = os.Stat(dir + "/phy80211")
	return err != nil
}
