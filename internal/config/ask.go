package config

import "net/netip"

// checkAskListen keeps the door for strangers away from the cables of the PCs.
func (r *reader) checkAskListen(c *Config) {
	if c.Attest.AskListen == "" {
		return
	}
	const key = "attest.ask_listen"
	const advice = "write the Pi's IPv4 address on the home network, such as 192.168.1.5:7445"
	a := netip.MustParseAddrPort(c.Attest.AskListen).Addr() // the table has read it
	if !a.Is4() || a.IsUnspecified() || a.IsMulticast() {
		r.fail(r.line[key], key, "is no IPv4 address of one interface", advice)
		return
	}
	own := c.Link.Address.Contains(a)
	for _, m := range c.Attest.Fleet {
		own = own || m.Address == a
	}
	if own {
		r.fail(r.line[key], key, "is on the PC's cable", advice)
	}
}
