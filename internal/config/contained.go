package config

import (
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Contained are the services that can be containers, in the order in which they start.
var Contained = []string{"pxed", "attestd"}

// Slice is the unit of systemd that says for a service's container what the service's
// unit says of addresses and of processors.
func Slice(service string) string { return "system-contained-" + service + ".slice" }

// contained reads verifier.services.
func contained(dst *[]string) func(*yaml.Node) error {
	advice := "write a list of " + strings.Join(Contained, " and ") + ", such as [pxed, attestd]"
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode {
			return &badValue{"is not a list", advice}
		}
		var out []string
		for _, e := range n.Content {
			if e.Kind != yaml.ScalarNode || !slices.Contains(Contained, e.Value) || slices.Contains(out, e.Value) {
				return &badValue{fmt.Sprintf("%.40q is no service that can be a container, or is there twice", e.Value), advice}
			}
			out = append(out, e.Value)
		}
		*dst = out
		return nil
	}
}
