package config

import (
	"encoding/hex"
	"fmt"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxDigests bounds a list of digests.
const maxDigests = 256

// digests reads a list of SHA-256 in hex, each with or without "sha256:" before it.
func digests(dst *[]string) func(*yaml.Node) error {
	const advice = `write a list of image ids, such as ["sha256:…"]; 'docker image inspect --format {{.Id}}' prints one`
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode || len(n.Content) > maxDigests {
			return &badValue{fmt.Sprintf("is not a list of at most %d digests", maxDigests), advice}
		}
		var out []string
		for _, e := range n.Content {
			s := strings.TrimPrefix(e.Value, "sha256:")
			b, err := hex.DecodeString(s)
			if err != nil || len(b) != 32 || strings.ToLower(s) != s {
				return &badValue{fmt.Sprintf("%.80q is not a SHA-256 in lower-case hex", e.Value), advice}
			}
			out = append(out, s)
		}
		*dst = out
		return nil
	}
}
