package pi

import (
	"fmt"
	"strings"

	"portcullis/images/card"
	"portcullis/internal/config"
)

// Seed renders the operator's settings. operator is the age recipient of the
// recovery key ("" = none: no headless enrolment), uplink the address of eth0
// with its prefix, configText the services' configuration ("" = none).
func Seed(operator, uplink, configText string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "schema: %s\n", card.SeedSchema)
	if operator != "" {
		fmt.Fprintf(&b, "operator_key: %s\n", operator)
	}
	b.WriteString("hostname: portcullis-lab\n")
	// No gateway and no name server: the Pi of a lab asks nobody for anything.
	fmt.Fprintf(&b, "uplink:\n  address: %s\n", uplink)
	if configText != "" {
		b.WriteString("config: |\n")
		for line := range strings.Lines(configText) {
			b.WriteString("  " + line)
		}
	}
	return b.String()
}

// DefaultSeed has settings with which all services start: the product's example
// configuration for a PC that is never there, whose lab image may be served.
func DefaultSeed(operator, releaseKey string) string {
	text := strings.Replace(config.Example(releaseKey), "allow_lab_image: false", "allow_lab_image: true", 1)
	return Seed(operator, "203.0.113.1/24", text)
}
