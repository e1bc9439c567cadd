package piinit

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"portcullis/images/card"
	"portcullis/internal/config"
)

// seedOf is a seed with a configuration.
func seedOf(t *testing.T, uplink string, change func(string) string, more ...string) *card.Seed {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	text := change(config.Example(base64.StdEncoding.EncodeToString(pub)))
	s, err := card.ParseSeed("seed", []byte("schema: portcullis/seed/v1\nhostname: gate\nuplink: "+uplink+"\nconfig: |\n  "+strings.ReplaceAll(text, "\n", "\n  ")+"\n"+strings.Join(more, "")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func same(s string) string { return s }

func TestSettingsBecomeFiles(t *testing.T) {
	s := seedOf(t, "dhcp", same)
	f := settingFiles(s)
	for name, want := range map[string]string{
		"etc/hostname":                          "gate\n",
		"etc/portcullis/deny.env":               "PORT=eth1\n",
		"etc/portcullis/portcullis.yaml":        string(s.ConfigText),
		"etc/systemd/network/20-pc.network":     "[Match]\nName=eth1\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nAddress=10.77.0.1/24\nConfigureWithoutCarrier=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
		"etc/systemd/network/10-uplink.network": "[Match]\nName=eth0\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nDHCP=ipv4\n",
	} {
		if string(f[name]) != want {
			t.Errorf("%s is %q", name, f[name])
		}
	}
	for name := range f {
		if strings.Contains(name, "system/") {
			t.Errorf("%s, although the link is the one that the units allow", name)
		}
		if !filepath.IsLocal(name) {
			t.Errorf("%s leaves the root", name)
		}
	}
}

func TestAnotherLinkIsAllowedInTheUnits(t *testing.T) {
	s := seedOf(t, "dhcp", func(c string) string {
		return strings.NewReplacer("10.77.0.1/24", "192.168.9.1/28", "10.77.0.2", "192.168.9.2").Replace(c)
	})
	f := settingFiles(s)
	for name, want := range map[string]string{
		"etc/systemd/system/attestd.service.d/10-link.conf": "[Service]\nIPAddressAllow=\nIPAddressAllow=192.168.9.0/28\n",
		"etc/systemd/system/pxed.service.d/10-link.conf":    "[Service]\nIPAddressAllow=\nIPAddressAllow=192.168.9.0/28 255.255.255.255 0.0.0.0\n",
		// Where verifierd runs them.
		"etc/systemd/system/system-contained-attestd.slice.d/10-link.conf": "[Slice]\nIPAddressAllow=\nIPAddressAllow=192.168.9.0/28\n",
		"etc/systemd/system/system-contained-pxed.slice.d/10-link.conf":    "[Slice]\nIPAddressAllow=\nIPAddressAllow=192.168.9.0/28 255.255.255.255 0.0.0.0\n",
	} {
		if string(f[name]) != want {
			t.Errorf("%s is %q", name, f[name])
		}
	}
}

// TestUnitsAllowTheDefaultLink: the network that needs no drop-in is the one in the units.
func TestUnitsAllowTheDefaultLink(t *testing.T) {
	for _, unit := range []string{"attestd.service", "pxed.service"} {
		b, err := os.ReadFile("../../systemd/" + unit)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "IPAddressAllow="+defaultLink.String()) {
			t.Errorf("%s does not allow %s", unit, defaultLink)
		}
	}
}

func TestStaticUplink(t *testing.T) {
	s := seedOf(t, "{address: 203.0.113.7/24, gateway: 203.0.113.1, dns: [203.0.113.1, 203.0.113.2]}", same)
	want := "[Match]\nName=eth0\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nAddress=203.0.113.7/24\nGateway=203.0.113.1\nDNS=203.0.113.1\nDNS=203.0.113.2\n"
	if got := string(settingFiles(s)["etc/systemd/network/10-uplink.network"]); got != want {
		t.Errorf("%q", got)
	}
}

// TestNoUplinkOnThePCsPort: a Pi whose only port is the PC's asks nobody for an address there.
func TestNoUplinkOnThePCsPort(t *testing.T) {
	s := seedOf(t, "dhcp", func(c string) string {
		return strings.NewReplacer("interface: eth1", "interface: eth0", "uplink: eth0", `uplink: ""`).Replace(c)
	})
	f := settingFiles(s)
	if b, ok := f["etc/systemd/network/10-uplink.network"]; ok {
		t.Errorf("%q", b)
	}
	if !strings.Contains(string(f["etc/systemd/network/20-pc.network"]), "Name=eth0") {
		t.Errorf("%q", f["etc/systemd/network/20-pc.network"])
	}
}

// Policy, webhooks' secrets and whom attestd may speak to lie where /etc cannot be
// written later; only attestd reads a secret.
func TestSettingsBringPolicyAndWebhooks(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef"
	s := seedOf(t, "dhcp", func(c string) string {
		return strings.NewReplacer("  # policy_file: /var/lib/portcullis/attestd/policy.yaml ", "  policy_file: "+card.PolicyPath,
			"  webhooks: []", "  webhooks: [{name: ops, url: https://ops.example/x, secret_file: "+card.SecretPath("ops")+"}]").Replace(c)
	}, "policy: |\n  rules: []\nwebhooks:\n  allow: [192.0.2.10/32, 198.51.100.0/28]\n  secrets: {ops: "+secret+"}\n")
	f := settingFiles(s)
	for name, want := range map[string]string{
		"etc/portcullis/policy.yaml": "rules: []\n",
		"etc/systemd/system/system-contained-attestd.slice.d/20-webhooks.conf": "[Slice]\nIPAddressAllow=127.0.0.53/32 192.0.2.10/32 198.51.100.0/28\n",
		"etc/systemd/system/attestd.service.d/20-webhooks.conf":                "[Service]\nIPAddressAllow=127.0.0.53/32 192.0.2.10/32 198.51.100.0/28\n",
	} {
		if string(f[name]) != want {
			t.Errorf("%s is %q", name, f[name])
		}
	}
	root := t.TempDir()
	if err := installSecrets(root, s); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "etc/portcullis/webhooks/ops.secret")
	b, err := os.ReadFile(path)
	st, err2 := os.Stat(path)
	if err != nil || err2 != nil || string(b) != secret || st.Mode() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != attestUser {
		t.Errorf("%q %v %v %v", b, st, err, err2)
	}
	users, err := os.ReadFile("../../systemd/portcullis.sysusers")
	if err != nil || !strings.Contains(string(users), fmt.Sprintf("u portcullis-attest %d ", attestUser)) {
		t.Errorf("attestd's user is not %d: %v", attestUser, err)
	}
}

// Approvers lie where verifierd looks for them, and who witnesses its log reaches it from
// everywhere but the PC's port; without either there is no file.
func TestSettingsBringApproversAndWitnesses(t *testing.T) {
	listen := func(c string) string {
		return strings.Replace(c, `  listen: ""  `, `  listen: "192.0.2.5:7444"  `, 1)
	}
	f := settingFiles(seedOf(t, "dhcp", listen, "approvers: '{\"threshold\":1}'\n"))
	for name, want := range map[string]string{
		"etc/portcullis/approvers.json":                            `{"threshold":1}`,
		"etc/systemd/system/verifierd.service.d/20-witnesses.conf": "[Service]\nIPAddressDeny=\nIPAddressDeny=10.77.0.0/24\n",
	} {
		if string(f[name]) != want {
			t.Errorf("%s is %q", name, f[name])
		}
	}
	services := func(c string) string { return strings.Replace(c, "services: []", "services: [pxed]", 1) }
	f = settingFiles(seedOf(t, "dhcp", services, "approvers: '{\"threshold\":1}'\n"))
	if f["etc/portcullis/contained/pxed"] == nil || f["etc/portcullis/contained/attestd"] != nil {
		t.Error("pxed's unit does not step back, or attestd's does")
	}
	for name := range settingFiles(seedOf(t, "dhcp", same)) {
		if strings.Contains(name, "approvers") || strings.Contains(name, "contained") || strings.Contains(name, "verifierd") {
			t.Errorf("without approvers and witnesses: %s", name)
		}
	}
}

// Who may POST /attest on the home side gets through to attestd, and only where the
// settings say so.
func TestSettingsLetTheHomeNetworkAsk(t *testing.T) {
	const name = "etc/systemd/system/attestd.service.d/30-ask.conf"
	ask := func(c string) string {
		return strings.Replace(c, `  ask_listen: ""  `, `  ask_listen: "203.0.113.7:7445"  `, 1)
	}
	for uplink, want := range map[string]string{
		"dhcp": "203.0.113.0/24",
		"{address: 203.0.113.7/28, gateway: 203.0.113.1, dns: [203.0.113.1]}": "203.0.113.0/28",
		"{address: 198.51.100.7/16, gateway: 198.51.0.1, dns: [198.51.0.1]}":  "203.0.113.0/24", // of a third port
	} {
		f := settingFiles(seedOf(t, uplink, ask))
		if got := string(f["etc/systemd/system/system-contained-attestd.slice.d/30-ask.conf"]); got != "[Slice]\nIPAddressAllow="+want+"\n" {
			t.Errorf("uplink %s, the slice of the container: %q", uplink, got)
		}
		if got := string(f[name]); got != "[Service]\nIPAddressAllow="+want+"\n" {
			t.Errorf("uplink %s: %q", uplink, got)
		}
	}
	if b, ok := settingFiles(seedOf(t, "dhcp", same))[name]; ok {
		t.Errorf("closed, and allowed: %q", b)
	}
}

func TestWithoutASeedNothingStarts(t *testing.T) {
	if f := settingFiles(nil); len(f) != 0 {
		t.Errorf("%v", f)
	}
	s, err := card.ParseSeed("seed", []byte("schema: portcullis/seed/v1\nuplink: dhcp\n"))
	if err != nil {
		t.Fatal(err)
	}
	if f := settingFiles(s); len(f) != 1 || f["etc/portcullis/portcullis.yaml"] != nil {
		t.Errorf("%v", f)
	}
}

func TestMachineIDStays(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"etc", dataDir} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string {
		os.Remove(filepath.Join(root, "etc/machine-id"))
		if err := machineID(root); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(root, "etc/machine-id"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := read()
	if len(first) != 33 || read() != first {
		t.Errorf("%q, then %q", first, read())
	}
}

// TestAttackLinksOnTheDataVolume: the data volume may be an attacker's. Links on it are
// neither read nor written through.
func TestAttackLinksOnTheDataVolume(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for _, d := range []string{"etc", dataDir} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const theirs = "0123456789abcdef0123456789abcdef\n"
	target := filepath.Join(outside, "file")
	for _, content := range []string{theirs, "something else"} {
		if err := os.WriteFile(target, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"machine-id", pinFile} {
			link := filepath.Join(root, dataDir, name)
			os.Remove(link)
			if err := os.Symlink(target, link); err != nil {
				t.Fatal(err)
			}
		}
		if err := machineID(root); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(root, "etc/machine-id")); err != nil || string(b) == theirs || len(b) != 33 {
			t.Errorf("%q, %v", b, err)
		}
		if text, _, err := pinned(root, []byte("schema: portcullis/seed/v1\n"), func() bool { return true }); err == nil {
			t.Errorf("settings through a link: %q", text)
		}
		if b, err := os.ReadFile(target); err != nil || string(b) != content {
			t.Errorf("written through a link: %q, %v", b, err)
		}
	}
}
