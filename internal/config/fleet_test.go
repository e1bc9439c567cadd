package config

import (
	"strings"
	"testing"
)

func TestForPC(t *testing.T) {
	text := []byte(Example(testKey(1)))
	seen := map[string]bool{}
	for _, name := range []string{"rack-1", "rack-2", "0", strings.Repeat("a", 40)} {
		c, err := Parse("p.yaml", text)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ForPC(name); err != nil {
			t.Fatal(err)
		}
		if c.PC != name || c.RunDir != "/run/portcullis/pcs/"+name || c.StateDir != "/var/lib/portcullis/pcs/"+name || seen[c.RunDir] {
			t.Errorf("%s: %q %s %s", name, c.PC, c.RunDir, c.StateDir)
		}
		seen[c.RunDir] = true
	}
	for _, bad := range []string{"", "-a", ".", "..", "a/b", "a.b", "A", "ä", "a b", "a\n", "a\x00", strings.Repeat("a", 41)} {
		c, err := Parse("p.yaml", text)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ForPC(bad); err == nil || c.PC != "" || c.RunDir != "/run/portcullis" {
			t.Errorf("%q: %v, %s", bad, err, c.RunDir)
		}
	}
}

func TestFleet(t *testing.T) {
	parse := func(pcs string) (*Config, error) {
		return Parse("p.yaml", []byte(strings.Replace(Example(testKey(1)), "pcs: []  ", "pcs: "+pcs+"  ", 1)))
	}
	c, err := parse("[]")
	if err != nil {
		t.Fatal(err)
	}
	if pcs := c.PCs(); len(pcs) != 1 || pcs[0] != (PC{"", c.Link.Address.Addr(), c.Link.PCMAC, c.RunDir, "/var/lib/portcullis/attestd"}) {
		t.Errorf("alone: %+v", pcs)
	}
	if c, err = parse("[{name: rack-1, address: 10.77.1.1, mac: '52:54:00:00:00:01'}, {name: b, address: 10.77.2.1, mac: '52:54:00:00:00:02'}]"); err != nil {
		t.Fatal(err)
	}
	pcs := c.PCs()
	if len(pcs) != 2 || pcs[0].Name != "rack-1" || pcs[0].RunDir != "/run/portcullis/pcs/rack-1" || pcs[1].Address.String() != "10.77.2.1" ||
		pcs[1].StateDir != "/var/lib/portcullis/attestd/pcs/b" {
		t.Errorf("%+v", pcs)
	}
	for text, want := range map[string]string{
		"7":           "is not a list",
		"[x]":         "PC 1 (line",
		"[{name: a}]": "not an IPv4 address",
		"[{address: 10.77.1.1, mac: '52:54:00:00:00:03'}]":                                                                   "is not a name",
		"[{name: ../a, address: 10.77.1.1, mac: '52:54:00:00:00:04'}]":                                                       "is not a name",
		"[{name: Rack, address: 10.77.1.1, mac: '52:54:00:00:00:05'}]":                                                       "is not a name",
		"[{name: a, address: 0.0.0.0, mac: '52:54:00:00:00:06'}]":                                                            "not an IPv4 address",
		"[{name: a, address: 'fe80::1', mac: '52:54:00:00:00:07'}]":                                                          "not an IPv4 address",
		"[{name: a, address: 10.77.1.1, port: 7, mac: '52:54:00:00:00:08'}]":                                                 "key \"port\"",
		"[{name: a, address: 10.77.1.1, mac: '52:54:00:00:00:09'}, {name: a, address: 10.77.2.1, mac: '52:54:00:00:00:0a'}]": "a second one of the name a",
		"[{name: a, address: 10.77.1.1, mac: '52:54:00:00:00:0b'}, {name: b, address: 10.77.1.1, mac: '52:54:00:00:00:0c'}]": "a second one at 10.77.1.1",
		"[{name: a, address: 10.77.1.1}]":                                                                                    "not a unicast Ethernet address",
		"[{name: a, name: b, address: 10.77.1.1, mac: '52:54:00:00:00:0d'}]":                                                 "key \"name\"",
		"[" + strings.Repeat("{name: a, address: 10.77.1.1, mac: '52:54:00:00:00:0e'}, ", 4097) + "]":                        "at most 4096",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v", text, err)
		}
	}
}
