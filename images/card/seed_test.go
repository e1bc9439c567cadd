package card

import (
	"errors"
	"strings"
	"testing"

	"filippo.io/age"

	"portcullis/internal/config"
)

const exampleConfig = `link:
  interface: eth1
  address: 10.77.0.1/24
  pc_address: 10.77.0.2
  pc_mac: 02:00:00:00:00:02
pxe:
  release_keys: ["1Ve1DKrvxJQQfMQYS2ORCoRxbgWv4j2FxV5bWnbEFpM="]
`

func operator(t testing.TB) (recipient, secret string) {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return k.Recipient().String(), k.String()
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n  ") + "\n"
}

func TestSeed(t *testing.T) {
	key, _ := operator(t)
	text := "schema: " + SeedSchema + "\noperator_key: " + key + "\nhostname: gate-1\n" +
		"uplink:\n  address: 192.168.1.20/24\n  gateway: 192.168.1.1\n  dns: [192.168.1.1, 9.9.9.9]\nconfig: |\n" + indent(exampleConfig)
	image, err := SeedImage("seed.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(image) != SeedSize {
		t.Fatalf("%d bytes", len(image))
	}
	s, err := ParseSeed("seed.yml", image)
	if err != nil {
		t.Fatal(err)
	}
	if s.OperatorKey != key || s.Hostname != "gate-1" || s.Uplink.DHCP() || s.Uplink.Address.String() != "192.168.1.20/24" ||
		s.Uplink.Gateway.String() != "192.168.1.1" || len(s.Uplink.DNS) != 2 || s.Config.Link.Interface != "eth1" || string(s.ConfigText) != exampleConfig {
		t.Errorf("%+v", s)
	}
	s, err = ParseSeed("seed.yml", []byte("schema: "+SeedSchema+"\nuplink: dhcp\n"))
	if err != nil || !s.Uplink.DHCP() || s.Config != nil {
		t.Errorf("%+v %v", s, err)
	}
	if !BlankSeed(pad(nil, SeedSize)) || BlankSeed(image) {
		t.Error("padding and settings are not told apart")
	}
}

// hookSecret is one of an example.
const hookSecret = "0123456789abcdef0123456789abcdef"

// full is a seed with all that a webhook and a policy need, in which one thing is replaced.
func full(old, by string) string {
	text := "schema: " + SeedSchema + "\nconfig: |\n" + indent(exampleConfig+"attest:\n  policy_file: /etc/portcullis/policy.yaml\n"+
		"  webhooks: [{name: ops, url: http://192.0.2.10/x, secret_file: /etc/portcullis/webhooks/ops.secret}]\n") +
		"policy: |\n  rules: []\nwebhooks:\n  allow: [192.0.2.10/32]\n  secrets: {ops: " + hookSecret + "}\n"
	return strings.Replace(text, old, by, 1)
}

// Lines of full.
const (
	policyLine   = 13
	webhooksLine = 16
)

// Who may approve comes along as it is written.
func TestSeedWithApprovers(t *testing.T) {
	s, err := ParseSeed("seed.yml", []byte("schema: "+SeedSchema+"\nconfig: |\n"+indent(exampleConfig)+"approvers: '{\"threshold\":1}'\n"))
	if err != nil || string(s.Approvers) != `{"threshold":1}` {
		t.Errorf("%+v %v", s, err)
	}
}

// What a policy and webhooks need comes along, and old settings without it stay good.
func TestSeedWithPolicyAndWebhooks(t *testing.T) {
	s, err := ParseSeed("seed.yml", []byte(full("", "")))
	if err != nil {
		t.Fatal(err)
	}
	if string(s.Policy) != "rules: []\n" || string(s.Webhooks.Secrets["ops"]) != hookSecret || len(s.Webhooks.Allow) != 1 || s.Webhooks.Allow[0].String() != "192.0.2.10/32" {
		t.Errorf("%+v", s)
	}
	old := "schema: " + SeedSchema + "\nconfig: |\n" + indent(exampleConfig+
		"attest:\n  webhooks: [{name: ops, url: http://192.0.2.10/x, secret_file: /var/lib/portcullis/attestd/ops.secret}]\n")
	if _, err := ParseSeed("seed.yml", []byte(old)); err != nil {
		t.Errorf("settings that were good are refused: %v", err)
	}
}

// Every mistake is named with its line and key.
func TestSeedRefusals(t *testing.T) {
	key, secret := operator(t)
	head := "schema: " + SeedSchema + "\n"
	broken := strings.Replace(exampleConfig, "pc_address: 10.77.0.2", "pc_address: 10.78.0.2", 1)
	for name, c := range map[string]struct {
		text, key string
		line      int
	}{
		"no schema":                     {"hostname: a\n", "schema", 1},
		"another schema":                {"schema: portcullis/seed/v2\n", "schema", 1},
		"unknown key":                   {head + "wifi: x\n", "wifi", 2},
		"twice":                         {head + "hostname: a\nhostname: b\n", "hostname", 3},
		"no age key":                    {head + "operator_key: ssh-ed25519 AAAA\n", "operator_key", 2},
		"secret half":                   {head + "operator_key: " + secret + "\n", "operator_key", 2},
		"everybody's key":               {head + "operator_key: " + lowOrder + "\n", "operator_key", 2},
		"capitals":                      {head + "operator_key: " + strings.ToUpper(key) + "\n", "operator_key", 2},
		"number":                        {head + "hostname: 7\n", "hostname", 2},
		"host name":                     {head + "hostname: Gate_1\n", "hostname", 2},
		"uplink word":                   {head + "uplink: static\n", "uplink", 2},
		"uplink without address":        {head + "uplink:\n  gateway: 10.0.0.1\n", "uplink.address", 3},
		"IPv6":                          {head + "uplink:\n  address: fd00::1/64\n", "uplink.address", 3},
		"gateway of elsewhere":          {head + "uplink:\n  address: 10.0.0.2/24\n  gateway: 10.0.1.1\n", "uplink.gateway", 3},
		"too many name servers":         {head + "uplink:\n  address: 10.0.0.2/24\n  dns: [1.1.1.1, 2.2.2.2, 3.3.3.3, 4.4.4.4]\n", "uplink.dns", 4},
		"anchor":                        {head + "hostname: &x gate\n", "hostname", 2},
		"a list":                        {"- a\n", "", 1},
		"two documents":                 {head + "---\n" + head, "", 0},
		"empty":                         {"\n\n", "", 0},
		"a mistake in the config block": {head + "config: |\n" + indent(broken), "config.link.pc_address", 6},
		"config is no text":             {head + "config:\n  link: {}\n", "config", 3},
		"a policy nothing names":        {full("policy_file: /etc/portcullis/policy.yaml", "policy_file: /etc/policy.yaml"), "policy", policyLine},
		"a policy that is not there":    {full("policy: |\n  rules: []\n", ""), "config.attest.policy_file", 0},
		"no configuration":              {head + "policy: |\n  rules: []\n", "policy", 2},
		"approvers of no verifier":      {head + "approvers: '{}'\n", "approvers", 2},
		"services without approvers":    {head + "config: |\n" + indent(exampleConfig+"verifier:\n  services: [pxed]\n"), "config.verifier.services", 0},
		"approvers that are no text":    {head + "approvers: {threshold: 1}\n", "approvers", 2},
		"a secret for no webhook":       {full("  secrets: {", "  secrets: {other: "+hookSecret+", "), "webhooks.secrets.other", webhooksLine},
		"a webhook without secret":      {full("  secrets: {ops: "+hookSecret+"}\n", ""), "webhooks.secrets.ops", webhooksLine},
		"a secret of elsewhere":         {full("secret_file: /etc/portcullis/webhooks/ops", "secret_file: /etc/portcullis/webhooks/cops"), "webhooks.secrets.ops", webhooksLine},
		"a short secret":                {full(hookSecret, "horse-battery-staple"), "webhooks.secrets.ops", webhooksLine + 1},
		"nobody to speak to":            {full("  allow: [192.0.2.10/32]\n", ""), "webhooks.allow", webhooksLine},
		"everybody to speak to":         {full("192.0.2.10/32", "0.0.0.0/0"), "webhooks.allow", webhooksLine},
		"an address with a network":     {full("192.0.2.10/32", "192.0.2.10/24"), "webhooks.allow", webhooksLine},
		"no certificate":                {full("  allow:", "  ca: nonsense\n  allow:"), "webhooks.ca", webhooksLine},
		"a ca that is not there":        {full("ops.secret}", "ops.secret, ca_file: /etc/portcullis/webhooks/ca.pem}"), "webhooks.ca", webhooksLine},
		"too large":                     {head + strings.Repeat("#", SeedSize), "", 0},
	} {
		s, err := ParseSeed("seed.yml", []byte(c.text))
		if err == nil {
			t.Errorf("%s: accepted as %+v", name, s)
			continue
		}
		var e *config.Error
		if !errors.As(err, &e) || e.Key != c.key || e.Line != c.line {
			t.Errorf("%s: %v; want line %d, key %q", name, err, c.line, c.key)
		}
		if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), hookSecret) || strings.Contains(err.Error(), "staple") {
			t.Errorf("%s: a secret is in the message", name)
		}
	}
}

// lowOrder is 32 zero bytes as a recipient (BIP 173): whatever the sender picks, the
// shared secret is zero. It is a valid line, and would be refused at enrolment only.
const lowOrder = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z"

func FuzzSeed(f *testing.F) {
	key, _ := operator(f)
	f.Add([]byte("schema: " + SeedSchema + "\noperator_key: " + key + "\nuplink: {address: 10.0.0.2/24, dns: [1.1.1.1]}\nconfig: |\n" + indent(exampleConfig)))
	f.Add([]byte(full("", "")))
	f.Add([]byte("schema: &a [*a]\n"))
	f.Add([]byte("uplink: !!map\nconfig: >\n a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSeed("seed.yml", b)
		if err != nil {
			return
		}
		if image, err := SeedImage("seed.yml", b); err != nil || len(image) != SeedSize {
			t.Errorf("%+v: %v", s, err)
		}
	})
}
