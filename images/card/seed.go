package card

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"

	"filippo.io/age"
	"gopkg.in/yaml.v3"

	"portcullis/internal/config"
)

// SeedSchema is the only schema.
const SeedSchema = "portcullis/seed/v1"

// Seed is what the operator puts on the card. A Seed that came out of ParseSeed
// is valid; every field but Uplink may be empty.
type Seed struct {
	OperatorKey string // age X25519 recipient: who can read the escrowed recovery key
	Hostname    string
	Uplink      Uplink
	ConfigText  []byte         // portcullis.yaml as it stands in the seed
	Config      *config.Config // the same, parsed
	Policy      []byte         // what stands at PolicyPath
	Approvers   []byte         // what stands at ApproversPath; empty: nobody's, and no Docker engine runs
	Webhooks    Webhooks
}

// Uplink is the Pi's port to the outside; the zero value asks by DHCP.
type Uplink struct {
	Address netip.Prefix // IPv4; invalid: DHCP
	Gateway netip.Addr   // inside Address; invalid: none
	DNS     []netip.Addr // IPv4, at most 3
}

// DHCP says that the address is asked for.
func (u Uplink) DHCP() bool { return !u.Address.IsValid() }

var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// BlankSeed says that b is the padding of a card without settings.
func BlankSeed(b []byte) bool { return len(bytes.TrimSpace(b)) == 0 }

// ParseSeed reads strict YAML; name stands for the file in errors. The error
// joins every mistake, each of type *config.Error with its line.
func ParseSeed(name string, b []byte) (*Seed, error) {
	if len(b) > SeedSize {
		return nil, &config.Error{File: name, Problem: fmt.Sprintf("the file is larger than %d bytes", SeedSize)}
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &config.Error{File: name, Problem: "the file is empty", Advice: "see 'portcullis flash --help' for an example"}
		}
		return nil, &config.Error{File: name, Problem: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, &config.Error{File: name, Problem: "more than one YAML document", Advice: "keep one"}
	}
	r := seedReader{file: name}
	r.top(doc.Content[0])
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return &r.seed, nil
}

// SeedImage checks a seed and returns it as the content of SeedFile.
func SeedImage(name string, b []byte) ([]byte, error) {
	if _, err := ParseSeed(name, b); err != nil {
		return nil, err
	}
	return pad(b, SeedSize), nil
}

// pad fills b with line feeds to n bytes; a longer b stays as it is.
func pad(b []byte, n int) []byte {
	return append(append([]byte{}, b...), bytes.Repeat([]byte{'\n'}, max(0, n-len(b)))...)
}

type seedReader struct {
	file string
	seed Seed
	errs []error

	policyLine, webhooksLine, approversLine int
}

func (r *seedReader) fail(line int, key, problem, advice string) {
	r.errs = append(r.errs, &config.Error{File: r.file, Line: line, Key: key, Problem: problem, Advice: advice})
}

func (r *seedReader) top(n *yaml.Node) {
	got := r.section("", n, map[string]func(*yaml.Node){
		"schema": r.schema, "operator_key": r.operatorKey, "hostname": r.hostname, "uplink": r.uplink, "config": r.config,
		"policy": r.policy, "webhooks": r.webhooks, "approvers": r.approvers,
	})
	if !got["schema"] {
		r.fail(n.Line, "schema", "is missing", fmt.Sprintf("write %q", SeedSchema))
	}
	if len(r.errs) == 0 {
		r.together()
	}
}

// section calls the setter of each key, and returns which keys were there.
func (r *seedReader) section(prefix string, n *yaml.Node, set map[string]func(*yaml.Node)) map[string]bool {
	seen := map[string]bool{}
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		r.fail(n.Line, strings.TrimSuffix(prefix, "."), "is not a section", "write 'key: value' lines below it, without anchors")
		return seen
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		f := set[k.Value]
		switch {
		case f == nil:
			r.fail(k.Line, prefix+k.Value, "unknown key", "")
		case seen[k.Value]:
			r.fail(k.Line, prefix+k.Value, "given twice", "keep one of them")
		case v.Kind == yaml.AliasNode || v.Anchor != "":
			r.fail(v.Line, prefix+k.Value, "anchors and aliases are not allowed", "write the value out")
		default:
			f(v)
		}
		seen[k.Value] = true
	}
	return seen
}

func (r *seedReader) text(n *yaml.Node, key string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.fail(n.Line, key, "is not text", "")
		return "", false
	}
	return n.Value, true
}

func (r *seedReader) schema(n *yaml.Node) {
	if v, ok := r.text(n, "schema"); ok && v != SeedSchema {
		r.fail(n.Line, "schema", fmt.Sprintf("%.40q is not known", v), fmt.Sprintf("write %q", SeedSchema))
	}
}

func (r *seedReader) operatorKey(n *yaml.Node) {
	v, ok := r.text(n, "operator_key")
	if !ok {
		return
	}
	if strings.HasPrefix(v, "AGE-SECRET-KEY-") {
		// Not repeated in the message: it would end in a log.
		r.fail(n.Line, "operator_key", "this is the secret half", "write the line that begins with age1, and make a new key: this one has left its place")
		return
	}
	key, err := age.ParseX25519Recipient(v)
	if err != nil || strings.ToLower(v) != v { // what enrolment takes, package escrow
		r.fail(n.Line, "operator_key", "is no age recipient", "write the line 'age1…' that age-keygen printed")
		return
	}
	// A point of low order gives everybody the same secret (RFC 7748, section 6.1).
	if _, err := key.Wrap(make([]byte, 16)); err != nil {
		r.fail(n.Line, "operator_key", "nothing can be kept secret with this key", "write the line 'age1…' that age-keygen printed")
		return
	}
	r.seed.OperatorKey = v
}

func (r *seedReader) hostname(n *yaml.Node) {
	if v, ok := r.text(n, "hostname"); ok {
		if !hostName.MatchString(v) {
			r.fail(n.Line, "hostname", fmt.Sprintf("%.70q is no host name", v), "write 1 to 63 lower-case letters, digits and hyphens")
		}
		r.seed.Hostname = v
	}
}

func (r *seedReader) config(n *yaml.Node) {
	v, ok := r.text(n, "config")
	if !ok {
		return
	}
	c, err := config.Parse(r.file, []byte(v))
	if err == nil {
		r.seed.ConfigText, r.seed.Config = []byte(v), c
		return
	}
	// A block begins on the line after its key; that makes its lines the seed's.
	shift := 0
	if n.Style == yaml.LiteralStyle {
		shift = n.Line
	}
	for _, e := range split(err) {
		var at *config.Error
		if !errors.As(e, &at) {
			r.fail(n.Line, "config", e.Error(), "")
			continue
		}
		line := n.Line
		if at.Line > 0 {
			line = shift + at.Line
		}
		r.fail(line, strings.TrimSuffix("config."+at.Key, "."), at.Problem, at.Advice)
	}
}

func split(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}
