package piinit

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"portcullis/images/card"
	"portcullis/internal/config"
	"portcullis/rootfs/boot"
)

// defaultLink is the network that the units of the image allow by themselves.
var defaultLink = netip.MustParsePrefix("10.77.0.0/24")

// defaultUplink is the Pi's port to the outside where the configuration names none.
const defaultUplink = "eth0"

// settingFiles are the files that a seed becomes, by their path below the root.
// Without a seed there are none, and the services, which need their configuration,
// do not start.
func settingFiles(s *card.Seed) map[string][]byte {
	files := map[string][]byte{}
	if s == nil {
		return files
	}
	if s.Hostname != "" {
		files["etc/hostname"] = []byte(s.Hostname + "\n")
		files["etc/hosts"] = []byte("127.0.0.1 localhost\n127.0.1.1 " + s.Hostname + "\n")
	}
	c := s.Config
	uplink := defaultUplink
	if c != nil {
		files[strings.TrimPrefix(config.DefaultPath, "/")] = s.ConfigText
		files["etc/systemd/network/20-pc.network"] = pcNetwork(c)
		files["etc/portcullis/deny.env"] = []byte("PORT=" + c.Link.Interface + "\n")
		if link := c.Link.Address.Masked(); link != defaultLink {
			both(files, "attestd", "10-link.conf", allow(link.String()))
			both(files, "pxed", "10-link.conf", allow(link.String(), "255.255.255.255", "0.0.0.0"))
		}
		if len(s.Approvers) > 0 {
			files[strings.TrimPrefix(card.ApproversPath, "/")] = s.Approvers
			for _, name := range c.Verifier.Services {
				// The service's unit steps back where this is.
				files["etc/portcullis/contained/"+name] = []byte("verifierd runs it\n")
			}
		}
		if v := c.Verifier; v.Listen != "" || len(v.Witnesses) > 0 {
			files["etc/systemd/system/verifierd.service.d/20-witnesses.conf"] = []byte("[Service]\n" + allButLink(c.Link.Address.Masked()))
		}
		if len(s.Policy) > 0 {
			files[strings.TrimPrefix(card.PolicyPath, "/")] = s.Policy
		}
		if len(s.Webhooks.CA) > 0 {
			files[strings.TrimPrefix(card.WebhookCA, "/")] = s.Webhooks.CA
		}
		if len(s.Webhooks.Allow) > 0 {
			both(files, "attestd", "20-webhooks.conf", allowMore(s.Webhooks.Allow))
		}
		if c.Attest.AskListen != "" {
			both(files, "attestd", "30-ask.conf", allowHome(c.Attest.AskListen, s.Uplink))
		}
		if c.Gateway.Uplink != "" {
			uplink = c.Gateway.Uplink
		}
		if uplink == c.Link.Interface {
			return files // a Pi with the PC's port only
		}
	}
	files["etc/systemd/network/10-uplink.network"] = uplinkNetwork(uplink, s.Uplink)
	return files
}

// noIPv6 keeps the kernel from announcing itself on a port.
const noIPv6 = "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"

func pcNetwork(c *config.Config) []byte {
	return fmt.Appendf(nil, "[Match]\nName=%s\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nAddress=%s\nConfigureWithoutCarrier=yes\n%s",
		c.Link.Interface, c.Link.Address, noIPv6)
}

func uplinkNetwork(name string, u card.Uplink) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "[Match]\nName=%s\n\n[Network]\n%s", name, noIPv6)
	if u.DHCP() {
		b.WriteString("DHCP=ipv4\n")
		return b.Bytes()
	}
	fmt.Fprintf(&b, "Address=%s\n", u.Address)
	if u.Gateway.IsValid() {
		fmt.Fprintf(&b, "Gateway=%s\n", u.Gateway)
	}
	for _, d := range u.DNS {
		fmt.Fprintf(&b, "DNS=%s\n", d)
	}
	return b.Bytes()
}

// both writes a drop-in for a service's unit and for the slice that holds its container:
// one of the two runs it.
func both(files map[string][]byte, service, name, lines string) {
	files["etc/systemd/system/"+service+".service.d/"+name] = []byte("[Service]\n" + lines)
	files["etc/systemd/system/"+config.Slice(service)+".d/"+name] = []byte("[Slice]\n" + lines)
}

// allow replaces the networks that a unit may speak to.
func allow(nets ...string) string {
	return "IPAddressAllow=\nIPAddressAllow=" + strings.Join(nets, " ") + "\n"
}

// resolver is the Pi's own: it asks the name servers, for names of webhooks.
const resolver = "127.0.0.53/32"

// allowMore adds networks to those that a unit may speak to.
func allowMore(nets []netip.Prefix) string {
	text := "IPAddressAllow=" + resolver
	for _, n := range nets {
		text += " " + n.String()
	}
	return text + "\n"
}

// homeBits is the length of the home network's prefix where a DHCP server will say it.
const homeBits = 24

// allowHome opens a unit to the network on which it listens: the uplink's, where the
// settings name it, else the 256 addresses around its own. From elsewhere nobody asks.
func allowHome(listen string, u card.Uplink) string {
	a := netip.MustParseAddrPort(listen).Addr() // the configuration has read it
	home := netip.PrefixFrom(a, homeBits)
	if u.Address.IsValid() && u.Address.Contains(a) {
		home = u.Address
	}
	return "IPAddressAllow=" + home.Masked().String() + "\n"
}

// allButLink opens a unit to every network but the PC's: who asks for a log, or witnesses
// it, may be anywhere.
func allButLink(link netip.Prefix) string {
	return "IPAddressDeny=\nIPAddressDeny=" + link.String() + "\n"
}

// attestUser is the user and group of attestd, as portcullis.sysusers makes it.
const attestUser = 972

// installSecrets writes what attestd alone may read.
func installSecrets(root string, s *card.Seed) error {
	if s == nil {
		return nil
	}
	for name, secret := range s.Webhooks.Secrets {
		path := filepath.Join(root, card.SecretPath(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return boot.Failf(ReasonSettings, "%w", err)
		}
		if err := replaceFile(path, secret, 0o600); err != nil {
			return boot.Failf(ReasonSettings, "%w", err)
		}
		if err := os.Lchown(path, attestUser, attestUser); err != nil {
			return boot.Failf(ReasonSettings, "%w", err)
		}
	}
	return nil
}

// install writes the files below root.
func install(root string, files map[string][]byte) error {
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return boot.Failf(ReasonSettings, "%w", err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return boot.Failf(ReasonSettings, "%w", err)
		}
	}
	return nil
}
