package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Witness is a witness of this Pi's log of approvals.
type Witness struct {
	URL string // http or https, without a slash at its end
	Key string // name+hash+base64, as the witness's verifierd says it
}

const maxWitnesses = 16

var witnessName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,99}$`)

func witnesses(dst *[]Witness) func(*yaml.Node) error {
	const advice = "write '- {url: https://…, key: name+hash+key}' for each"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) > maxWitnesses {
			return &badValue{fmt.Sprintf("is not a list of at most %d witnesses", maxWitnesses), advice}
		}
		var out []Witness
		for i, e := range n.Content {
			w, err := oneWitness(e)
			if err == nil && slices.ContainsFunc(out, func(x Witness) bool { return x.Key == w.Key }) {
				err = fmt.Errorf("a second one of this key")
			}
			if err != nil {
				return &badValue{fmt.Sprintf("witness %d (line %d): %v", i+1, e.Line, err), advice}
			}
			out = append(out, w)
		}
		*dst = out
		return nil
	}
}

func oneWitness(n *yaml.Node) (Witness, error) {
	var w Witness
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		return w, fmt.Errorf("is not 'key: value' lines")
	}
	set := map[string]*string{"url": &w.URL, "key": &w.Key}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		dst := set[k.Value]
		if dst == nil || *dst != "" || v.Kind != yaml.ScalarNode || v.Anchor != "" || v.Value == "" || len(v.Value) > 400 {
			return w, fmt.Errorf("key %.40q is unknown, given twice, or without a value", k.Value)
		}
		*dst = v.Value
	}
	u, err := url.Parse(w.URL)
	switch {
	case err != nil, u.Host == "", u.User != nil, u.RawQuery != "", u.Scheme != "https" && u.Scheme != "http", strings.HasSuffix(w.URL, "/"):
		return w, fmt.Errorf("the url is no http or https address, names a user, or ends with a slash")
	case strings.Count(w.Key, "+") < 2:
		return w, fmt.Errorf("the key is not name+hash+key")
	}
	return w, nil
}

// listenAddress is an address and a port of this machine; "" is none.
func listenAddress(dst *string) func(*yaml.Node) error {
	const advice = "write an address and a port, such as 192.168.1.5:7444, or \"\""
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		if a, err := netip.ParseAddrPort(s); s != "" && (err != nil || a.Port() == 0) {
			return &badValue{fmt.Sprintf("%.60q is not an address with a port", s), advice}
		}
		*dst = s
		return nil
	}
}

func witnessNamed(dst *string) func(*yaml.Node) error {
	const advice = "write a name without spaces, such as node.example/w1, or \"\""
	return func(n *yaml.Node) error {
		s, err := scalar(n, advice)
		if err != nil {
			return err
		}
		if s != "" && !witnessName.MatchString(s) {
			return &badValue{fmt.Sprintf("%.120q is not the name of a witness", s), advice}
		}
		*dst = s
		return nil
	}
}

// checkVerifier looks at what only several values together can get wrong.
func (r *reader) checkVerifier(v Verifier) {
	if v.Quorum > len(v.Witnesses) {
		r.fail(r.line["verifier.quorum"], "verifier.quorum", fmt.Sprintf("%d signatures asked of %d witnesses", v.Quorum, len(v.Witnesses)), "lower it or add witnesses")
	}
	if (v.WitnessName == "") != (len(v.WitnessLogs) == 0) || v.WitnessName != "" && v.Listen == "" {
		r.fail(r.line["verifier.witness_name"], "verifier.witness_name", "a witness has a name, logs that it signs for, and an address where it listens", "give witness_name, witness_logs and listen, or none of the first two")
	}
}
