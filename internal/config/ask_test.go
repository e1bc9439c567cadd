package config

import (
	"strings"
	"testing"
)

func TestAskListenIsOnTheHomeSide(t *testing.T) {
	for address, ok := range map[string]bool{
		"": true, "192.168.1.5:7445": true, "127.0.0.1:7445": true,
		"0.0.0.0:7445": false, "[::]:7445": false, "[fd00::1]:7445": false, "224.0.0.1:7445": false, "192.168.1.5:0": false, "192.168.1.5": false, "home:7445": false,
		"10.77.0.1:7445": false, // the PC's cable
		"10.88.0.1:7445": false, // the cable of another
	} {
		text := minimal() + "attest:\n  ask_listen: \"" + address + "\"\n  pcs: [{name: a, address: 10.88.0.1, mac: \"52:54:00:12:34:57\"}]\n"
		c, err := Parse("p.yaml", []byte(text))
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if err == nil && c.Attest.AskListen != address {
			t.Errorf("%q was read as %q", address, c.Attest.AskListen)
		}
		if err != nil && !strings.Contains(err.Error(), "attest.ask_listen") {
			t.Errorf("%q: %v", address, err)
		}
	}
}
