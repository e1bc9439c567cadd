package protocol

import "fmt"

// Link is one network interface of the first network namespace.
type Link struct {
	Name      string `json:"name"`
	Index     int    `json:"index"`
	Kind      string `json:"kind"`      // of a virtual one: bridge, veth, dummy, … empty for hardware
	Loopback  bool   `json:"loopback"`  // lo
	MAC       string `json:"mac"`       // in use
	Permanent string `json:"permanent"` // burnt in; empty where the driver does not say
	Up        bool   `json:"up"`
	Carrier   bool   `json:"carrier"`
	Master    int    `json:"master"`  // index of the bridge or bond it belongs to, 0 for none
	Device    string `json:"device"`  // the bus address behind it, empty for a virtual one
	Promisc   bool   `json:"promisc"` // receives what is not for it
}

// Route is one route: of IPv4 in the main table, of IPv6 where it has a gateway.
type Route struct {
	To      string `json:"to"`      // network, CIDR
	Gateway string `json:"gateway"` // 0.0.0.0 for none
	Link    string `json:"link"`
}

// FilterTable is one table of the packet filter.
type FilterTable struct {
	Family string        `json:"family"` // ip, ip6, inet, arp, bridge or netdev
	Name   string        `json:"name"`
	Chains []FilterChain `json:"chains"` // that packets come through
	Rules  int           `json:"rules"`
}

// FilterChain is a chain that packets come through.
type FilterChain struct {
	Name     string `json:"name"`
	Type     string `json:"type"` // filter, nat or route
	Hook     int    `json:"hook"` // of the family: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting
	Priority int    `json:"priority"`
}

// RawSocket are raw sockets for one protocol (raw(7)): each sees every packet of it that
// comes to the machine.
type RawSocket struct {
	Family   string `json:"family"`   // ip or ip6
	Protocol int    `json:"protocol"` // IANA's number, 0 to 255
	Sockets  int    `json:"sockets"`  // how many
}

// Limits of NetData.
const (
	MaxFilterTables = 256
	MaxFilterChains = 1024 // of one table

	MaxRoutes  = 4096
	MaxSockets = 4096
	MaxRadios  = 64
	MaxRaw     = 512
)

// NetData is the answer of op net.
type NetData struct {
	Links     []Link      `json:"links"`
	Routes    []Route     `json:"routes"`
	Listeners []string    `json:"listeners"` // "tcp 0.0.0.0:22" of sockets that wait for strangers, loopback left out
	Packet    int         `json:"packet"`    // packet sockets: each sees every frame
	Raw       []RawSocket `json:"raw"`
	Radios    []string    `json:"radios"` // Wi-Fi and Bluetooth
	Rules     []string    `json:"rules"`  // that choose a routing table, but for those of every kernel

	Filters     []FilterTable `json:"filters"`
	FilterRules string        `json:"filter_rules_sha256"` // hex, of all rules without their counters; empty without a filter
}

// Check bounds the lists and strings.
func (d *NetData) Check() error {
	if err := atMost("interfaces", len(d.Links), MaxLinks); err != nil {
		return err
	}
	for _, l := range []struct {
		what   string
		n, max int
	}{{"routes", len(d.Routes), MaxRoutes}, {"sockets", len(d.Listeners), MaxSockets}, {"radios", len(d.Radios), MaxRadios}, {"raw sockets", len(d.Raw), MaxRaw}, {"routing rules", len(d.Rules), MaxRoutes}, {"filter tables", len(d.Filters), MaxFilterTables}} {
		if err := atMost(l.what, l.n, l.max); err != nil {
			return err
		}
	}
	for _, r := range d.Routes {
		if err := short("route", r.To, r.Gateway, r.Link); err != nil {
			return err
		}
	}
	if err := short("socket", append(d.Listeners, d.Radios...)...); err != nil {
		return err
	}
	if err := short("routing rule", append(d.Rules, d.FilterRules)...); err != nil {
		return err
	}
	for _, r := range d.Raw {
		if r.Family != "ip" && r.Family != "ip6" || r.Protocol < 0 || r.Protocol > 255 || r.Sockets < 1 {
			return fmt.Errorf("%d raw sockets of protocol %d of family %.16q", r.Sockets, r.Protocol, r.Family)
		}
	}
	for _, t := range d.Filters {
		if err := t.check(); err != nil {
			return err
		}
	}
	for _, l := range d.Links {
		if err := short("interface", l.Name, l.Kind, l.MAC, l.Permanent, l.Device); err != nil {
			return err
		}
	}
	return nil
}

func (t *FilterTable) check() error {
	if err := atMost("filter chains", len(t.Chains), MaxFilterChains); err != nil {
		return err
	}
	for _, c := range t.Chains {
		if err := short("filter chain", c.Name, c.Type); err != nil {
			return err
		}
	}
	return short("filter table", t.Family, t.Name)
}
