package config

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testKey(seed byte) string {
	b := make([]byte, ed25519.SeedSize)
	b[0] = seed
	pub := ed25519.NewKeyFromSeed(b).Public().(ed25519.PublicKey)
	return base64.StdEncoding.EncodeToString(pub)
}

func minimal() string {
	return `link:
  interface: eth1
  address: 10.77.0.1/24
  pc_address: 10.77.0.2
  pc_mac: "52:54:00:12:34:56"
pxe:
  release_keys:
    - ` + testKey(1) + "\n"
}

func TestMinimalFileGetsDefaults(t *testing.T) {
	c, err := Parse("p.yaml", []byte(minimal()))
	if err != nil {
		t.Fatal(err)
	}
	if c.Attest.Port != 7443 || c.PXE.HTTPPort != 80 || c.Attest.MeanGap != 5*time.Second ||
		c.PXE.AllowBIOS || c.PXE.AllowLabImage || c.RunDir != "/run/portcullis" {
		t.Fatalf("defaults: %+v", c)
	}
}

func TestWholeFile(t *testing.T) {
	c, err := Parse("p.yaml", []byte(Example(testKey(1))))
	if err != nil {
		t.Fatal(err)
	}
	if c.Gateway.Uplink != "eth0" || c.Gateway.BanFor != 10*time.Minute || len(c.Gateway.AllowedUIDs) != 3 {
		t.Fatalf("%+v", c)
	}
}

func TestMistakesAreNamedWithLineAndAdvice(t *testing.T) {
	edit := func(old, new string) string { return strings.Replace(minimal(), old, new, 1) }
	for _, tc := range []struct {
		name, text, line, key, want string
	}{
		{"unknown key near a known one", edit("interface", "interfaec"), "p.yaml:2", "link.interfaec", `write "interface"`},
		{"unknown section", minimal() + "firewall: {}\n", "p.yaml:9", "firewall", "known here:"},
		{"missing key", edit("  pc_mac: \"52:54:00:12:34:56\"\n", ""), "p.yaml:2", "link.pc_mac", "is missing"},
		{"IPv6 address", edit("10.77.0.1/24", "fd00::1/64"), "p.yaml:3", "link.address", "10.77.0.1/24"},
		{"PC outside the network", edit("pc_address: 10.77.0.2", "pc_address: 10.78.0.2"), "p.yaml:4", "link.pc_address", "not inside"},
		{"PC has our address", edit("pc_address: 10.77.0.2", "pc_address: 10.77.0.1"), "p.yaml:4", "link.pc_address", "our own"},
		{"PC has the broadcast address", edit("pc_address: 10.77.0.2", "pc_address: 10.77.0.255"), "p.yaml:4", "link.pc_address", "broadcast"},
		{"multicast MAC", edit("52:54", "53:54"), "p.yaml:5", "link.pc_mac", "unicast"},
		{"bad key", edit(testKey(1), "AAAA"), "p.yaml:8", "pxe.release_keys", "keygen"},
		{"key twice", minimal() + "    - " + testKey(1) + "\n", "p.yaml:8", "pxe.release_keys", "twice"},
		{"threshold over keys", minimal() + "  threshold: 2\n", "p.yaml:9", "pxe.threshold", "2 signatures asked of 1"},
		{"duration without unit", minimal() + "attest:\n  mean_gap: 5\n", "p.yaml:10", "attest.mean_gap", "with its unit"},
		{"number out of range", minimal() + "  http_port: 70000\n", "p.yaml:9", "pxe.http_port", "1 to 65535"},
		{"boolean as word", minimal() + "  allow_bios: \"yes\"\n", "p.yaml:9", "pxe.allow_bios", "true or false"},
		{"relative path", "run_dir: run\n" + minimal(), "p.yaml:1", "run_dir", "absolute"},
		{"path with dots", "state_dir: /var/../etc\n" + minimal(), "p.yaml:1", "state_dir", "absolute"},
		{"key given twice", minimal() + "run_dir: /a\nrun_dir: /b\n", "p.yaml:10", "", "already"},
		{"unknown rung", minimal() + "attest:\n  power:\n    ladder: [agent, ladder]\n", "p.yaml:11", "attest.power.ladder", "relay-reset"},
		{"rung twice", minimal() + "attest:\n  power:\n    ladder: [wake, wake]\n", "p.yaml:11", "attest.power.ladder", "twice"},
		{"hook through a shell", minimal() + "power:\n  hook:\n    reset: reboot now\n", "p.yaml:11", "power.hook.reset", "absolute path"},
		{"hook by name", minimal() + "power:\n  hook:\n    off: [ipmitool, off]\n", "p.yaml:11", "power.hook.off", "absolute path"},
		{"webhook without secret", minimal() + "attest:\n  webhooks:\n    - {name: a, url: \"https://x/\"}\n", "p.yaml:11", "attest.webhooks", "secret_file"},
		{"webhook with a password", minimal() + "attest:\n  webhooks:\n    - {name: a, url: \"https://u:p@x/\", secret_file: /s}\n", "p.yaml:11", "attest.webhooks", "names a user"},
		{"webhook key", minimal() + "attest:\n  webhooks:\n    - {name: a, url: \"https://x/\", secret: s}\n", "p.yaml:11", "attest.webhooks", "unknown"},
		{"webhook twice", minimal() + "attest:\n  webhooks:\n    - {name: a, url: \"https://x/\", secret_file: /s}\n    - {name: a, url: \"https://x/\", secret_file: /s}\n", "p.yaml:11", "attest.webhooks", "second one"},
		{"same port twice", minimal() + "attest:\n  port: 80\n", "p.yaml:10", "attest.port", "boot server"},
		{"uplink is the PC port", minimal() + "gateway:\n  uplink: eth1\n", "p.yaml:10", "gateway.uplink", "other interface"},
		{"unknown service", minimal() + "verifier:\n  services: [gatewayd]\n", "p.yaml:10", "verifier.services", "pxed and attestd"},
		{"service twice", minimal() + "verifier:\n  services: [pxed, pxed]\n", "p.yaml:10", "verifier.services", "twice"},
		{"anchor", edit("interface: eth1", "interface: &x eth1"), "p.yaml:2", "link.interface", "anchors"},
		{"section is a list", "link: []\n", "p.yaml:1", "link", "not a section"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("p.yaml", []byte(tc.text))
			if err == nil {
				t.Fatal("accepted")
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("not a typed error: %v", err)
			}
			s := err.Error()
			if tc.key == "" { // the YAML library itself refuses it and names the line in its own way
				return
			}
			for _, want := range []string{tc.line, tc.key, tc.want} {
				if !strings.Contains(s, want) {
					t.Errorf("%q lacks %q", s, want)
				}
			}
		})
	}
}

func TestEveryMistakeIsReported(t *testing.T) {
	_, err := Parse("p.yaml", []byte("run_dir: x\nlink: {}\n"))
	if n := len(strings.Split(err.Error(), "\n")); n < 6 {
		t.Fatalf("%d mistakes told: %v", n, err)
	}
}

func TestOddFilesAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "two documents": minimal() + "---\n" + minimal(), "not YAML": "{", "huge": strings.Repeat("#\n", MaxSize),
		"scalar": "hello", "tab": "\tlink: 1",
	} {
		if _, err := Parse("p.yaml", []byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal()))
	f.Add([]byte(Example(testKey(1))))
	f.Add([]byte(minimal() + "verifier:\n  services: [attestd, pxed]\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("link: {interface: [1, {}]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("f.yaml", b)
		if (c == nil) == (err == nil) {
			t.Fatal("neither a value nor an error")
		}
		if c != nil && (!c.Link.Address.Contains(c.Link.PCAddress) || c.PXE.Threshold > len(c.PXE.ReleaseKeys)) {
			t.Fatalf("an invalid value exists: %+v", c)
		}
	})
}
