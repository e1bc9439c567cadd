package ruleset

import "strings"

// Names of the tables where the Pi has one port. Where it has several (a rack), each
// port's gatewayd has tables of its own: the same names, a dot, the name of the PC.
const (
	LinkTable = "portcullis-link" // netdev: who may speak on the cable at all
	IPTable   = "portcullis"      // inet: what may be said
	DenyTable = "portcullis-deny" // inet: the static file loaded before the network

	// OpenSet of DenyTable holds the ports that are no longer its own, where its file is the one for a
	// rack. Where the table has no such set it is for one port, and ends with gatewayd's first start.
	OpenSet = "open"
)

// IPTableOf names the inet table of a PC; "" is the only one. Names of PCs have no
// dot (config.PCName), so no two of them and no other table of ours are alike.
func IPTableOf(pc string) string { return IPTable + suffix(pc) }

// IsIPTable tells whether a name is that of the inet table of some PC.
func IsIPTable(name string) bool { return name == IPTable || strings.HasPrefix(name, IPTable+".") }

// LinkTableOf names the netdev table of a PC.
func LinkTableOf(pc string) string { return LinkTable + suffix(pc) }

// PrefixOf is what NFLOG carries in front of direction and reason: the evidence of
// one port is never taken for that of another, even if two were given the same group.
func PrefixOf(pc string) string { return Prefix + suffix(pc) }

func suffix(pc string) string {
	if pc == "" {
		return ""
	}
	return "." + pc
}
