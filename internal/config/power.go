package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// rungNames are the ways to take a PC down that attest.power.ladder may name.
var rungNames = []string{"agent", "relay-reset", "relay-power", "wake", "hook"}

func rungs(dst *[]string) func(*yaml.Node) error {
	advice := "write a list of " + strings.Join(rungNames, ", ") + ", each at most once"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode {
			return &badValue{"is not a list", advice}
		}
		out := []string{}
		for _, e := range n.Content {
			if e.Kind != yaml.ScalarNode || !slices.Contains(rungNames, e.Value) || slices.Contains(out, e.Value) {
				return &badValue{fmt.Sprintf("%.40q is no rung, or stands there twice", e.Value), advice}
			}
			out = append(out, e.Value)
		}
		*dst = out
		return nil
	}
}

// Limits of a hook's command.
const (
	maxArgs = 32
	maxArg  = 1024
)

func argv(dst *[]string) func(*yaml.Node) error {
	const advice = "write a list: the command's absolute path, then its arguments, such as [/usr/local/bin/redfish, reset]; secrets go into files"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) == 0 || len(n.Content) > maxArgs {
			return &badValue{fmt.Sprintf("is not a list of 1 to %d words", maxArgs), advice}
		}
		var out []string
		for _, e := range n.Content {
			if e.Kind != yaml.ScalarNode || e.Tag == "!!null" || len(e.Value) > maxArg || strings.ContainsRune(e.Value, 0) {
				return &badValue{"a word is no text, or too long", advice}
			}
			out = append(out, e.Value)
		}
		if !filepath.IsAbs(out[0]) || filepath.Clean(out[0]) != out[0] {
			return &badValue{fmt.Sprintf("%.80q is not a clean absolute path", out[0]), advice}
		}
		*dst = out
		return nil
	}
}

var webhookName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,39}$`)

// maxWebhooks bounds the list.
const maxWebhooks = 8

func webhooks(dst *[]Webhook) func(*yaml.Node) error {
	const advice = "write '- {name: ops, url: https://…, secret_file: /var/lib/portcullis/attestd/ops.secret}' for each; ca_file is optional"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) > maxWebhooks {
			return &badValue{fmt.Sprintf("is not a list of at most %d webhooks", maxWebhooks), advice}
		}
		var out []Webhook
		for i, e := range n.Content {
			w, err := webhook(e)
			if err == nil && slices.ContainsFunc(out, func(x Webhook) bool { return x.Name == w.Name }) {
				err = fmt.Errorf("a second one of the name %s", w.Name)
			}
			if err != nil {
				return &badValue{fmt.Sprintf("webhook %d (line %d): %v", i+1, e.Line, err), advice}
			}
			out = append(out, w)
		}
		*dst = out
		return nil
	}
}

func webhook(n *yaml.Node) (Webhook, error) {
	var w Webhook
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		return w, fmt.Errorf("is not 'key: value' lines")
	}
	set := map[string]*string{"name": &w.Name, "url": &w.URL, "secret_file": &w.SecretFile, "ca_file": &w.CAFile}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		dst := set[k.Value]
		if dst == nil || *dst != "" || v.Kind != yaml.ScalarNode || v.Anchor != "" || v.Value == "" {
			return w, fmt.Errorf("key %.40q is unknown, given twice, or without a value", k.Value)
		}
		*dst = v.Value
	}
	u, err := url.Parse(w.URL)
	switch {
	case !webhookName.MatchString(w.Name):
		return w, fmt.Errorf("%.50q is not a name", w.Name)
	case err != nil, u.Host == "", u.User != nil, u.Scheme != "https" && u.Scheme != "http":
		return w, fmt.Errorf("the url is no http or https address, or names a user")
	case !filepath.IsAbs(w.SecretFile), w.CAFile != "" && !filepath.IsAbs(w.CAFile):
		return w, fmt.Errorf("secret_file and ca_file are absolute paths")
	}
	return w, nil
}
