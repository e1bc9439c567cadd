package card

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"gopkg.in/yaml.v3"
)

// Where pi-init puts what a seed holds beside the configuration: /etc of the Pi's own
// system cannot be written later.
const (
	PolicyPath = "/etc/portcullis/policy.yaml"
	// ApproversPath is where verifierd looks for those whose approvals count.
	ApproversPath = "/etc/portcullis/approvers.json"
	WebhookDir    = "/etc/portcullis/webhooks"
	WebhookCA     = WebhookDir + "/ca.pem"
)

// SecretPath is where the secret of the webhook of that name lies.
func SecretPath(name string) string { return path.Join(WebhookDir, name+".secret") }

// Webhooks is what attestd needs to reach the configured webhooks.
type Webhooks struct {
	Allow   []netip.Prefix    // IPv4, beside the PC's network: the receivers
	CA      []byte            // PEM; empty: the system's authorities
	Secrets map[string][]byte // by the webhook's name
}

// Limits of webhooks; the secret's are those of attestd.
const (
	maxAllow  = 16
	minSecret = 32
	maxSecret = 256
)

// policy takes the text as it is: flash checks it before it is written, attestd refuses
// one with a mistake, and pi-init need not know its language.
func (r *seedReader) policy(n *yaml.Node) {
	if v, ok := r.text(n, "policy"); ok {
		r.seed.Policy, r.policyLine = []byte(v), n.Line
	}
}

// approvers takes the text as it is: flash checks it before it is written, and verifierd
// does not start on one with a mistake.
func (r *seedReader) approvers(n *yaml.Node) {
	if v, ok := r.text(n, "approvers"); ok {
		r.seed.Approvers, r.approversLine = []byte(v), n.Line
	}
}

func (r *seedReader) webhooks(n *yaml.Node) {
	w := &r.seed.Webhooks
	r.webhooksLine = n.Line
	r.section("webhooks.", n, map[string]func(*yaml.Node){
		"allow": func(n *yaml.Node) {
			if n.Kind != yaml.SequenceNode || len(n.Content) == 0 || len(n.Content) > maxAllow {
				r.fail(n.Line, "webhooks.allow", fmt.Sprintf("is not a list of 1 to %d networks", maxAllow), "write for instance [192.0.2.10/32]")
				return
			}
			for _, e := range n.Content {
				p, err := netip.ParsePrefix(e.Value)
				if err != nil || e.Kind != yaml.ScalarNode || !p.Addr().Is4() || p.Bits() == 0 || p != p.Masked() {
					r.fail(e.Line, "webhooks.allow", fmt.Sprintf("%.40q is no IPv4 network", e.Value), "write for instance 192.0.2.10/32")
					continue
				}
				w.Allow = append(w.Allow, p)
			}
		},
		"ca": func(n *yaml.Node) {
			v, ok := r.text(n, "webhooks.ca")
			if !ok {
				return
			}
			if !certificates([]byte(v)) {
				r.fail(n.Line, "webhooks.ca", "is not certificates in PEM and nothing else", "")
			}
			w.CA = []byte(v)
		},
		"secrets": func(n *yaml.Node) {
			w.Secrets = map[string][]byte{}
			set := map[string]func(*yaml.Node){}
			for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
				name := n.Content[i].Value
				set[name] = func(n *yaml.Node) { w.Secrets[name] = r.secret(n, "webhooks.secrets."+name) }
			}
			r.section("webhooks.secrets.", n, set)
		},
	})
}

// secret is never repeated in a message: it would end in a log.
func (r *seedReader) secret(n *yaml.Node, key string) []byte {
	v, ok := r.text(n, key)
	if !ok {
		return nil
	}
	if len(v) < minSecret || len(v) > maxSecret || strings.ContainsFunc(v, func(c rune) bool { return c <= ' ' || c > '~' }) {
		r.fail(n.Line, key, fmt.Sprintf("is not %d to %d letters, digits and signs", minSecret, maxSecret), "make one with 'openssl rand -hex 32'")
	}
	return []byte(v)
}

// certificates says that b is at least one certificate in PEM, and nothing else.
func certificates(b []byte) bool {
	found := false
	for len(bytes.TrimSpace(b)) > 0 {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" {
			return false
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return false
		}
		found, b = true, rest
	}
	return found
}

// together finds what only the configuration and the rest of the seed can get wrong:
// a policy that nothing names, a webhook that could never be told.
func (r *seedReader) together() {
	s := &r.seed
	configured := map[string]bool{}
	if len(s.Approvers) > 0 && s.Config == nil {
		r.fail(r.approversLine, "approvers", "without a configuration no verifier runs", "add 'config: |'")
	}
	if s.Config != nil && len(s.Config.Verifier.Services) > 0 && len(s.Approvers) == 0 {
		r.fail(0, "config.verifier.services", "nobody can approve their images on this Pi, and they would not run", "add 'approvers: |', or leave it out")
	}
	if s.Config != nil {
		a := s.Config.Attest
		switch {
		case len(s.Policy) > 0 && a.PolicyFile != PolicyPath:
			r.fail(r.policyLine, "policy", "the configuration does not use it", "write 'policy_file: "+PolicyPath+"' below attest in config")
		case len(s.Policy) == 0 && a.PolicyFile == PolicyPath:
			r.fail(0, "config.attest.policy_file", "there is no policy in these settings", "add 'policy: |'")
		}
		for _, w := range a.Webhooks {
			configured[w.Name] = true
			here := strings.HasPrefix(w.SecretFile, WebhookDir+"/") || s.Webhooks.Secrets[w.Name] != nil
			switch {
			case here && (w.SecretFile != SecretPath(w.Name) || s.Webhooks.Secrets[w.Name] == nil):
				r.fail(r.webhooksLine, "webhooks.secrets."+w.Name, "the webhook has no secret on this Pi",
					"add it here, and 'secret_file: "+SecretPath(w.Name)+"' to the webhook in config")
			case here && len(s.Webhooks.Allow) == 0:
				r.fail(r.webhooksLine, "webhooks.allow", "attestd may speak to nobody but the PC", "name the receivers' networks")
			case strings.HasPrefix(w.CAFile, WebhookDir+"/") && (w.CAFile != WebhookCA || len(s.Webhooks.CA) == 0):
				r.fail(r.webhooksLine, "webhooks.ca", "the webhook's ca_file is not on this Pi", "add it here, and write 'ca_file: "+WebhookCA+"' in config")
			}
		}
	} else if len(s.Policy) > 0 {
		r.fail(r.policyLine, "policy", "there is no configuration that uses it", "add 'config: |'")
	}
	for name := range s.Webhooks.Secrets {
		if !configured[name] {
			r.fail(r.webhooksLine, "webhooks.secrets."+name, "the configuration has no webhook of this name", "")
		}
	}
}
