package config

import (
	"strings"
	"testing"
)

func TestVerifierOfTheConfiguration(t *testing.T) {
	parse := func(lines string) (*Config, error) {
		text := Example(testKey(1))
		begin := strings.Index(text, "verifier:\n")
		end := strings.Index(text[begin:], "witness_logs:")
		rest := text[begin+end:]
		rest = rest[strings.Index(rest, "\n")+1:]
		return Parse("p.yaml", []byte(text[:begin]+"verifier:\n"+lines+rest))
	}
	const w = "{url: \"http://10.0.0.1:7444/witness\", key: \"w1+00000000+AAAA\"}"
	good := "  listen: \"10.0.0.2:7444\"\n  witnesses: [" + w + "]\n  quorum: 1\n  witness_name: node.example/w2\n  witness_logs: [\"" + testKey(2) + "\"]\n"
	c, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if v := c.Verifier; v.Quorum != 1 || v.Listen != "10.0.0.2:7444" || len(v.Witnesses) != 1 || v.Witnesses[0].Key != "w1+00000000+AAAA" || v.WitnessName != "node.example/w2" || len(v.WitnessLogs) != 1 {
		t.Errorf("%+v", v)
	}
	for name, lines := range map[string]string{
		"a quorum without witnesses":     "  quorum: 1\n",
		"a witness twice":                "  witnesses: [" + w + ", " + w + "]\n",
		"a witness without a key":        "  witnesses: [{url: \"http://10.0.0.1\"}]\n",
		"a key that is none":             "  witnesses: [{url: \"http://10.0.0.1\", key: \"w1\"}]\n",
		"another scheme":                 strings.Replace(good, "http://10", "file://10", 1),
		"a user in the url":              strings.Replace(good, "http://10", "http://a:b@10", 1),
		"a port without an address":      strings.Replace(good, "10.0.0.2:7444", ":7444", 1),
		"a name with a plus":             strings.Replace(good, "node.example/w2", "a+b", 1),
		"a name without logs":            "  listen: \"10.0.0.2:7444\"\n  witness_name: a\n",
		"logs without a name":            "  listen: \"10.0.0.2:7444\"\n  witness_logs: [\"" + testKey(2) + "\"]\n",
		"a witness that listens nowhere": strings.Replace(good, "10.0.0.2:7444", "", 1),
		"an unknown key of a witness":    "  witnesses: [{url: \"http://10.0.0.1\", key: \"w1+0+A\", more: x}]\n",
	} {
		if _, err := parse(lines); err == nil || !strings.Contains(err.Error(), "verifier.") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
