package config

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

func defaults() *Config {
	return &Config{
		RunDir:   "/run/portcullis",
		StateDir: "/var/lib/portcullis",
		Gateway:  Gateway{BanAfter: 5, BanWindow: time.Minute, BanFor: 10 * time.Minute, NFLogGroup: 77},
		PXE: PXE{ImageDir: "/var/lib/portcullis/images/hpc", Threshold: 1, HTTPPort: 80,
			ClaimWindow: 2 * time.Minute},
		Attest: Attest{Port: 7443, KeyFile: "/var/lib/portcullis/attestd/gateway.key", MeanGap: 5 * time.Second,
			MinGap: 200 * time.Millisecond, Deadline: 10 * time.Second, Rekey: 10 * time.Minute, NoiseMiB: 16,
			Ladder: Ladder{Rungs: []string{"agent"}, Within: 2 * time.Minute, OffTime: 10 * time.Second}},
		Power: Power{HookTimeout: 30 * time.Second},
	}
}

// root is the table of the whole file: each key once, with its check.
func root(c *Config) []field {
	return []field{
		{key: "run_dir", set: absPath(&c.RunDir)},
		{key: "state_dir", set: absPath(&c.StateDir)},
		{key: "link", required: true, sub: []field{
			{key: "interface", required: true, set: iface(&c.Link.Interface, false)},
			{key: "address", required: true, set: prefix4(&c.Link.Address)},
			{key: "pc_address", required: true, set: addr4(&c.Link.PCAddress)},
			{key: "pc_mac", required: true, set: mac(&c.Link.PCMAC)},
		}},
		{key: "gateway", sub: []field{
			{key: "uplink", set: iface(&c.Gateway.Uplink, true)},
			{key: "ban_after", set: number(&c.Gateway.BanAfter, 1, 1000)},
			{key: "ban_window", set: duration(&c.Gateway.BanWindow, time.Second, time.Hour)},
			{key: "ban_for", set: duration(&c.Gateway.BanFor, time.Second, 24*time.Hour)},
			{key: "nflog_group", set: number(&c.Gateway.NFLogGroup, 1, 65535)},
			{key: "allowed_uids", set: uids(&c.Gateway.AllowedUIDs)},
		}},
		{key: "pxe", required: true, sub: []field{
			{key: "image_dir", set: absPath(&c.PXE.ImageDir)},
			{key: "release_keys", required: true, set: keys(&c.PXE.ReleaseKeys, false)},
			{key: "threshold", set: number(&c.PXE.Threshold, 1, 16)},
			{key: "min_version", set: number(&c.PXE.MinVersion, 0, 1<<53)},
			{key: "http_port", set: number(&c.PXE.HTTPPort, 1, 65535)},
			{key: "claim_window", set: duration(&c.PXE.ClaimWindow, time.Second, time.Hour)},
			{key: "allow_bios", set: boolean(&c.PXE.AllowBIOS)},
			{key: "allow_lab_image", set: boolean(&c.PXE.AllowLabImage)},
			{key: "allowed_uids", set: uids(&c.PXE.AllowedUIDs)},
		}},
		{key: "attest", sub: []field{
			{key: "port", set: number(&c.Attest.Port, 1, 65535)},
			{key: "key_file", set: absPath(&c.Attest.KeyFile)},
			{key: "mean_gap", set: duration(&c.Attest.MeanGap, 500*time.Millisecond, 10*time.Minute)},
			{key: "min_gap", set: duration(&c.Attest.MinGap, 50*time.Millisecond, time.Minute)},
			{key: "deadline", set: duration(&c.Attest.Deadline, 100*time.Millisecond, 5*time.Minute)},
			{key: "rekey", set: duration(&c.Attest.Rekey, time.Second, 24*time.Hour)},
			{key: "policy_file", set: absPath(&c.Attest.PolicyFile)},
			{key: "webhooks", set: webhooks(&c.Attest.Webhooks)},
			{key: "power", sub: []field{
				{key: "ladder", set: rungs(&c.Attest.Ladder.Rungs)},
				{key: "within", set: duration(&c.Attest.Ladder.Within, 5*time.Second, 30*time.Minute)},
				{key: "off_time", set: duration(&c.Attest.Ladder.OffTime, 5*time.Second, 10*time.Minute)},
			}},
			{key: "noise_mib", set: number(&c.Attest.NoiseMiB, 0, 65536)},
			{key: "containers", set: digests(&c.Attest.Containers)},
			{key: "ask_listen", set: listenAddress(&c.Attest.AskListen)},
			{key: "pcs", set: members(&c.Attest.Fleet)},
			{key: "allowed_uids", set: uids(&c.Attest.AllowedUIDs)},
			{key: "operator_keys", set: keys(&c.Attest.OperatorKeys, true)},
		}},
		{key: "power", sub: []field{
			{key: "hook", sub: []field{
				{key: "reset", set: argv(&c.Power.HookReset)},
				{key: "off", set: argv(&c.Power.HookOff)},
				{key: "timeout", set: duration(&c.Power.HookTimeout, time.Second, 10*time.Minute)},
			}},
			{key: "allowed_uids", set: uids(&c.Power.AllowedUIDs)},
		}},
		{key: "verifier", sub: []field{
			{key: "allowed_uids", set: uids(&c.Verifier.AllowedUIDs)},
			{key: "listen", set: listenAddress(&c.Verifier.Listen)},
			{key: "witnesses", set: witnesses(&c.Verifier.Witnesses)},
			{key: "quorum", set: number(&c.Verifier.Quorum, 0, maxWitnesses)},
			{key: "witness_name", set: witnessNamed(&c.Verifier.WitnessName)},
			{key: "witness_logs", set: keys(&c.Verifier.WitnessLogs, true)},
			{key: "services", set: contained(&c.Verifier.Services)},
		}},
	}
}

// check looks at what only several values together can get wrong.
func (r *reader) check(c *Config) {
	if len(r.errs) > 0 {
		return
	}
	r.checkVerifier(c.Verifier)
	l := c.Link
	switch {
	case !l.Address.Contains(l.PCAddress):
		r.fail(r.line["link.pc_address"], "link.pc_address", fmt.Sprintf("%s is not inside %s", l.PCAddress, l.Address.Masked()),
			"write an address of that network")
	case l.PCAddress == l.Address.Addr():
		r.fail(r.line["link.pc_address"], "link.pc_address", "is our own address", "write another address of "+l.Address.Masked().String())
	case l.PCAddress == l.Address.Masked().Addr() || l.PCAddress == lastAddr(l.Address):
		r.fail(r.line["link.pc_address"], "link.pc_address", "is the network or broadcast address", "write a host address of "+l.Address.Masked().String())
	}
	if c.Gateway.Uplink == l.Interface {
		r.fail(r.line["gateway.uplink"], "gateway.uplink", "is the PC's own port", "write the other interface, or leave it out")
	}
	if c.PXE.Threshold > len(c.PXE.ReleaseKeys) {
		r.fail(r.line["pxe.threshold"], "pxe.threshold", fmt.Sprintf("%d signatures asked of %d keys", c.PXE.Threshold, len(c.PXE.ReleaseKeys)),
			"lower it or add keys")
	}
	if c.PXE.HTTPPort == c.Attest.Port {
		r.fail(r.line["attest.port"], "attest.port", "is the boot server's port too", "write another")
	}
	r.checkAskListen(c)
	if c.Attest.MinGap > c.Attest.MeanGap {
		r.fail(r.line["attest.min_gap"], "attest.min_gap", "is longer than mean_gap", fmt.Sprintf("write at most %s", c.Attest.MeanGap))
	}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	host := uint32(1)<<(32-p.Bits()) - 1
	for i := range b {
		b[i] |= byte(host >> (24 - 8*i))
	}
	return netip.AddrFrom4(b)
}

func scalar(n *yaml.Node, want string) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", &badValue{"is not a single value", want}
	}
	return n.Value, nil
}

func absPath(dst *string) func(*yaml.Node) error {
	const advice = "write an absolute path without '..', such as /var/lib/portcullis"
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(s) || filepath.Clean(s) != s || s == "/" || strings.ContainsRune(s, 0) {
			return &badValue{fmt.Sprintf("%q is not a clean absolute path", s), advice}
		}
		*dst = s
		return nil
	}
}

func iface(dst *string, empty bool) func(*yaml.Node) error {
	const advice = "write the name that 'ip link' shows, such as eth1"
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		if s == "" && empty {
			*dst = ""
			return nil
		}
		// IFNAMSIZ is 16 with the terminating zero (linux/if.h).
		if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: \t\n") {
			return &badValue{fmt.Sprintf("%q is not an interface name", s), advice}
		}
		*dst = s
		return nil
	}
}

func prefix4(dst *netip.Prefix) func(*yaml.Node) error {
	const advice = "write an IPv4 address with its network length, such as 10.77.0.1/24"
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		p, perr := netip.ParsePrefix(s)
		if perr != nil || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 30 {
			return &badValue{fmt.Sprintf("%q is not an IPv4 address with a length of 8 to 30", s), advice}
		}
		*dst = p
		return nil
	}
}

func addr4(dst *netip.Addr) func(*yaml.Node) error {
	const advice = "write an IPv4 address, such as 10.77.0.2"
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		a, aerr := netip.ParseAddr(s)
		if aerr != nil || !a.Is4() {
			return &badValue{fmt.Sprintf("%q is not an IPv4 address", s), advice}
		}
		*dst = a
		return nil
	}
}

func mac(dst *string) func(*yaml.Node) error {
	const advice = "write the PC's Ethernet address in quotes, such as \"52:54:00:12:34:56\""
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		if *dst, err = unicastMAC(s); err != nil {
			return &badValue{err.Error(), advice}
		}
		return nil
	}
}

// unicastMAC gives the address its one spelling.
func unicastMAC(s string) (string, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 || hw.String() == "00:00:00:00:00:00" {
		return "", fmt.Errorf("%.40q is not a unicast Ethernet address", s)
	}
	return hw.String(), nil
}

func duration(dst *time.Duration, lo, hi time.Duration) func(*yaml.Node) error {
	advice := fmt.Sprintf("write a time from %s to %s with its unit, such as %s", lo, hi, (lo+hi)/2)
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		d, derr := time.ParseDuration(s)
		if derr != nil || d < lo || d > hi {
			return &badValue{fmt.Sprintf("%q is not a time from %s to %s", s, lo, hi), advice}
		}
		*dst = d
		return nil
	}
}

func number[T int | uint16 | uint64](dst *T, lo, hi uint64) func(*yaml.Node) error {
	advice := fmt.Sprintf("write a whole number from %d to %d", lo, hi)
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		v, verr := strconv.ParseUint(s, 10, 64)
		if verr != nil || v < lo || v > hi {
			return &badValue{fmt.Sprintf("%q is not a whole number from %d to %d", s, lo, hi), advice}
		}
		*dst = T(v)
		return nil
	}
}

func boolean(dst *bool) func(*yaml.Node) error {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			return &badValue{fmt.Sprintf("%q is not true or false", n.Value), "write true or false"}
		}
		*dst = n.Value == "true" || n.Value == "True" || n.Value == "TRUE"
		return nil
	}
}

func uids(dst *[]int) func(*yaml.Node) error {
	const advice = "write a list of numeric user ids, such as [971, 972]"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) > 32 {
			return &badValue{"is not a list of at most 32 user ids", advice}
		}
		var out []int
		for _, e := range n.Content {
			v, err := strconv.ParseUint(e.Value, 10, 31)
			if err != nil || e.Kind != yaml.ScalarNode {
				return &badValue{fmt.Sprintf("%q is not a user id", e.Value), advice}
			}
			out = append(out, int(v))
		}
		*dst = out
		return nil
	}
}

// keys reads a list of keys; empty: it may have none.
func keys(dst *[]string, empty bool) func(*yaml.Node) error {
	const advice = "write the lines of the .pub files that 'portcullis image keygen' made"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 && !empty || len(n.Content) > 16 {
			return &badValue{"is not a list of 1 to 16 keys", advice}
		}
		seen := map[string]bool{}
		var out []string
		for _, e := range n.Content {
			b, err := base64.StdEncoding.Strict().DecodeString(e.Value)
			if err != nil || len(b) != ed25519.PublicKeySize {
				return &badValue{fmt.Sprintf("%q is not a base64 Ed25519 public key", e.Value), advice}
			}
			if seen[e.Value] {
				return &badValue{fmt.Sprintf("%q is listed twice", e.Value), "keep one: each key counts once"}
			}
			seen[e.Value] = true
			out = append(out, e.Value)
		}
		*dst = out
		return nil
	}
}
