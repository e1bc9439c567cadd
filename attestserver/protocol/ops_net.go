package protocol

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

// Route is one IPv4 route of the main table.
type Route struct {
	To      string `json:"to"`      // network, CIDR
	Gateway string `json:"gateway"` // 0.0.0.0 for none
	Link    string `json:"link"`
}

// Limits of NetData.
const (
	MaxRoutes  = 4096
	MaxSockets = 4096
	MaxRadios  = 64
)

// NetData is the answer of op net.
type NetData struct {
	Links     []Link   `json:"links"`
	Routes    []Route  `json:"routes"`
	Listeners []string `json:"listeners"` // "tcp 0.0.0.0:22" of sockets that wait for strangers, loopback left out
	Packet    int      `json:"packet"`    // packet sockets: each sees every frame
	Radios    []string `json:"radios"`    // Wi-Fi and Bluetooth
}

// Check bounds the lists and strings.
func (d *NetData) Check() error {
	if err := atMost("interfaces", len(d.Links), MaxLinks); err != nil {
		return err
	}
	for _, l := range []struct {
		what   string
		n, max int
	}{{"routes", len(d.Routes), MaxRoutes}, {"sockets", len(d.Listeners), MaxSockets}, {"radios", len(d.Radios), MaxRadios}} {
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
	for _, l := range d.Links {
		if err := short("interface", l.Name, l.Kind, l.MAC, l.Permanent, l.Device); err != nil {
			return err
		}
	}
	return nil
}
