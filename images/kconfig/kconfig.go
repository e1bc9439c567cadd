// Package kconfig reads and merges configurations of Linux, as files and as they are
// embedded in a kernel. images/kernel builds with them, images/ktextmask asks a
// kernel what it has.
package kconfig

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

// Line is one option of a kernel configuration: its name without CONFIG_ and its
// value as it is written: y, m, n (not set), a number or a quoted string.
type Line struct{ Name, Value string }

// Off is the value of an option that is not set.
const Off = "n"

var (
	setForm   = regexp.MustCompile(`^CONFIG_([A-Za-z0-9_]+)=(y|m|-?[0-9]+|0x[0-9a-fA-F]+|"[^"\\]*(?:\\.[^"\\]*)*")$`)
	unsetForm = regexp.MustCompile(`^# CONFIG_([A-Za-z0-9_]+) is not set$`)
)

// Max bounds a configuration file, in bytes; Debian's has 300 kB.
const Max = 4 << 20

// Parse reads a kernel configuration or a fragment of one. Comments and empty lines
// are skipped; an option that stands twice is an error.
func Parse(file []byte) ([]Line, error) {
	if len(file) > Max {
		return nil, fmt.Errorf("kernel configuration of %d bytes", len(file))
	}
	var out []Line
	seen := map[string]bool{}
	for n, l := range strings.Split(string(file), "\n") {
		l = strings.TrimRight(l, " \r")
		var line Line
		if m := setForm.FindStringSubmatch(l); m != nil {
			line = Line{m[1], m[2]}
		} else if m := unsetForm.FindStringSubmatch(l); m != nil {
			line = Line{m[1], Off}
		} else if strings.HasPrefix(l, "#") || l == "" {
			continue
		} else {
			return nil, fmt.Errorf("kernel configuration, line %d: %.80q is neither an option nor a comment", n+1, l)
		}
		if seen[line.Name] {
			return nil, fmt.Errorf("kernel configuration, line %d: %s stands twice", n+1, line.Name)
		}
		seen[line.Name] = true
		out = append(out, line)
	}
	return out, nil
}

// Merge lays a fragment over a base: what the base builds as a module is dropped,
// what the fragment names has the fragment's value.
func Merge(base, fragment []Line) []byte {
	over := map[string]bool{}
	for _, l := range fragment {
		over[l.Name] = true
	}
	var out bytes.Buffer
	for _, l := range base {
		if over[l.Name] {
			continue
		}
		if l.Value == "m" {
			l.Value = Off
		}
		l.write(&out)
	}
	for _, l := range fragment {
		l.write(&out)
	}
	return out.Bytes()
}

func (l Line) write(out *bytes.Buffer) {
	if l.Value == Off {
		fmt.Fprintf(out, "# CONFIG_%s is not set\n", l.Name)
		return
	}
	fmt.Fprintf(out, "CONFIG_%s=%s\n", l.Name, l.Value)
}
