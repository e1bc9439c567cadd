package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"

	"gopkg.in/yaml.v3"
)

// maxMembers bounds attest.pcs.
const maxMembers = 4096

var memberName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

// PC is a PC as attestd sees it.
type PC struct {
	Name     string     // "" where there is one
	Address  netip.Addr // ours on its port
	MAC      string
	RunDir   string // sockets of its gatewayd, its pxed, its relay and its hook
	StateDir string // attestd's own, of this PC
}

// PCRunDir is where the sockets are of what serves one of several PCs.
func PCRunDir(runDir, pc string) string { return filepath.Join(runDir, "pcs", pc) }

// ForPC makes c, the file of one port, that of the PC pc among several of this Pi: the services
// of that port have directories of its own, so that no two ports share a socket or a state.
func (c *Config) ForPC(pc string) error {
	if !memberName.MatchString(pc) {
		return fmt.Errorf("configuration: %.50q is not a name of a PC: 1 to 40 of a-z, 0-9 and dashes", pc)
	}
	c.PC, c.RunDir, c.StateDir = pc, PCRunDir(c.RunDir, pc), filepath.Join(c.StateDir, "pcs", pc)
	return nil
}

// LoadFor is Load, and ForPC where pc is not empty.
func LoadFor(path, pc string) (*Config, error) {
	c, err := Load(path)
	if err != nil || pc == "" {
		return c, err
	}
	return c, c.ForPC(pc)
}

// PCs are those that attestd serves: those of attest.pcs, or the one of link.
func (c *Config) PCs() []PC {
	state := filepath.Join(c.StateDir, "attestd")
	if len(c.Attest.Fleet) == 0 {
		return []PC{{Address: c.Link.Address.Addr(), MAC: c.Link.PCMAC, RunDir: c.RunDir, StateDir: state}}
	}
	var out []PC
	for _, m := range c.Attest.Fleet {
		out = append(out, PC{m.Name, m.Address, m.MAC, PCRunDir(c.RunDir, m.Name), filepath.Join(state, "pcs", m.Name)})
	}
	return out
}

// members reads attest.pcs.
func members(dst *[]Member) func(*yaml.Node) error {
	const advice = "write '- {name: rack-1, address: 10.77.1.1, mac: \"52:54:00:12:34:56\"}' for each, with our address on the port of that PC"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) > maxMembers {
			return &badValue{fmt.Sprintf("is not a list of at most %d PCs", maxMembers), advice}
		}
		var out []Member
		names, macs, addresses := map[string]bool{}, map[string]bool{}, map[netip.Addr]bool{}
		for i, e := range n.Content {
			m, err := member(e)
			switch {
			case err != nil:
			case names[m.Name]:
				err = fmt.Errorf("a second one of the name %s", m.Name)
			case macs[m.MAC]:
				err = fmt.Errorf("a second one with %s", m.MAC)
			case addresses[m.Address]:
				err = fmt.Errorf("a second one at %s", m.Address)
			}
			if err != nil {
				return &badValue{fmt.Sprintf("PC %d (line %d): %v", i+1, e.Line, err), advice}
			}
			names[m.Name], macs[m.MAC], addresses[m.Address] = true, true, true
			out = append(out, m)
		}
		*dst = out
		return nil
	}
}

func member(n *yaml.Node) (m Member, err error) {
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		return m, fmt.Errorf("is not 'key: value' lines")
	}
	var address, mac string
	set := map[string]*string{"name": &m.Name, "address": &address, "mac": &mac}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		dst := set[k.Value]
		if dst == nil || *dst != "" || v.Kind != yaml.ScalarNode || v.Anchor != "" || v.Value == "" {
			return m, fmt.Errorf("key %.40q is unknown, given twice, or without a value", k.Value)
		}
		*dst = v.Value
	}
	if !memberName.MatchString(m.Name) {
		return m, fmt.Errorf("%.50q is not a name", m.Name)
	}
	if m.Address, err = netip.ParseAddr(address); err != nil || !m.Address.Is4() || m.Address.IsUnspecified() || m.Address.IsMulticast() {
		return m, fmt.Errorf("%.50q is not an IPv4 address of ours", address)
	}
	if m.MAC, err = unicastMAC(mac); err != nil {
		return m, err
	}
	return m, nil
}
