package netns

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Cable joins two interfaces of the host as one Ethernet cable would, by a bridge
// called name that learns nothing and passes every frame on, whatever addresses
// it carries. The bridge has no address and sends nothing of its own.
func (h *Host) Cable(name, a, b string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snoop := false
	if err := h.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
		return fmt.Errorf("netns: bridge %s in %s: %w", name, h.name, err)
	}
	bridge, err := h.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("netns: bridge %s in %s: %w", name, h.name, err)
	}
	for _, port := range []string{a, b} {
		err := h.onLink(port, "plug in", func(l netlink.Link) error {
			if err := h.links.LinkSetMaster(l, bridge); err != nil {
				return err
			}
			return h.links.LinkSetLearning(l, false)
		})
		if err != nil {
			return err
		}
	}
	return h.Up(name)
}
