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

// NetData is the answer of op net.
type NetData struct {
	Links []Link `json:"links"`
}

// Check bounds the lists and strings.
func (d *NetData) Check() error {
	if err := atMost("interfaces", len(d.Links), MaxLinks); err != nil {
		return err
	}
	for _, l := range d.Links {
		if err := short("interface", l.Name, l.Kind, l.MAC, l.Permanent, l.Device); err != nil {
			return err
		}
	}
	return nil
}
