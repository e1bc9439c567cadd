package expect

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/fingerprint"
	"portcullis/attestserver/protocol"
)

// Net is the twin of probe.Net.
type Net struct{ user }

// Name implements protocol.Expectation.
func (*Net) Name() string { return protocol.OpNet }

// Params implements protocol.Expectation.
func (*Net) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// virtual are the interfaces without hardware that Docker makes, by kind and name.
var virtual = map[string]*regexp.Regexp{
	"bridge": regexp.MustCompile(`^(docker0|br-[0-9a-f]{12})$`),
	"veth":   regexp.MustCompile(`^veth[0-9a-f]{7}$`),
}

// Judge implements protocol.Expectation.
func (e *Net) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.NetData
	if !j.read(in, &d) {
		return j.list
	}
	enrolled, err := enrolledNICs(in.Refs, in.State)
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	boot := ""
	for _, l := range d.Links {
		switch {
		case l.Loopback && l.Name == "lo" && l.Device == "":
		case l.Kind == "" && l.Device != "" && cmp.Or(l.Permanent, l.MAC) == in.State.MAC:
			boot = l.Name
			bootInterface(j, l)
		case l.Kind == "" && l.Device != "":
			otherHardware(j, l, enrolled)
		case l.Device == "" && virtual[l.Kind] != nil && virtual[l.Kind].MatchString(l.Name):
		default:
			j.fatal(ReasonInterface, "%s of kind %q, address %s", l.Name, l.Kind, l.MAC)
		}
	}
	if err := e.filters(j, in.State, &d); err != nil {
		j.unjudged(err)
		return j.list
	}
	if boot == "" {
		j.fatal(ReasonNoInterface, "no interface has the address %s that the PC booted with", in.State.MAC)
	} else {
		ways(j, &d, boot)
	}
	return j.list
}

// ways judges by which way packets leave and who sees them.
func ways(j *judge, d *protocol.NetData, boot string) {
	for _, r := range d.Routes {
		if r.To == "0.0.0.0/0" && r.Link != boot || r.Gateway != "0.0.0.0" && r.Link != boot {
			j.fatal(ReasonRoute, "%s by %s over %s", r.To, r.Gateway, r.Link)
		}
	}
	for _, r := range d.Rules {
		j.fatal(ReasonRoute, "a rule chooses another table: %s", r)
	}
	if d.Packet > 0 {
		j.fatal(ReasonSniffer, "%d packet sockets", d.Packet)
	}
	for _, r := range d.Raw {
		switch {
		case r.Protocol == unix.IPPROTO_RAW: // sends, and gets nothing
		case r.Family == "ip" && r.Protocol == unix.IPPROTO_ICMP, r.Family == "ip6" && r.Protocol == unix.IPPROTO_ICMPV6:
			j.add(protocol.Info, ReasonRaw, "%d raw sockets of %s for its messages of control", r.Sockets, r.Family)
		default:
			j.fatal(ReasonSniffer, "%d raw sockets of %s for protocol %d", r.Sockets, r.Family, r.Protocol)
		}
	}
	for _, r := range d.Radios {
		j.fatal(ReasonRadio, "%s", r)
	}
	if len(d.Listeners) > 0 {
		j.add(protocol.Info, ReasonListener, "%s", strings.Join(d.Listeners[:min(len(d.Listeners), maxListeners)], ", "))
	}
}

// maxListeners bounds how many of them one finding names.
const maxListeners = 8

func bootInterface(j *judge, l protocol.Link) {
	if l.MAC != cmp.Or(l.Permanent, l.MAC) {
		j.fatal(ReasonMAC, "%s uses %s, burnt in is %s", l.Name, l.MAC, l.Permanent)
	}
	if l.Promisc {
		j.fatal(ReasonPromiscuous, "%s receives every frame", l.Name)
	}
	if l.Master != 0 {
		j.fatal(ReasonEnslaved, "%s is part of interface %d", l.Name, l.Master)
	}
}

// otherHardware: a PC may have more network cards than the one that it booted
// with, if they were there at enrolment and carry nothing.
func otherHardware(j *judge, l protocol.Link, enrolled map[string]bool) {
	mac := cmp.Or(l.Permanent, l.MAC)
	if l.Up || l.Carrier || (enrolled != nil && !enrolled[mac]) {
		j.fatal(ReasonSecondInterface, "%s at %s with address %s, up is %t", l.Name, l.Device, mac, l.Up)
		return
	}
	j.add(protocol.Info, ReasonIdleInterface, "%s at %s with address %s", l.Name, l.Device, mac)
}

// enrolledNICs are the permanent addresses of the network hardware that was
// there when the machine was enrolled. Before the enrolment every card counts
// as known, provided that it is down.
func enrolledNICs(refs protocol.References, st *protocol.ImageState) (map[string]bool, error) {
	ref, err := fingerprint.Load(refs, st.MAC)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, c := range ref.Parts {
		if c.Class == protocol.HwNIC {
			out[c.Slot] = true
		}
	}
	return out, nil
}
