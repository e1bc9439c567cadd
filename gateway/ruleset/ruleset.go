// Package ruleset turns a policy into a description of nftables: tables, named
// counters, sets, chains, rules. It is pure, so that each phase has a golden text;
// package nft carries a Ruleset into the kernel.
package ruleset

import (
	"fmt"
	"strings"
	"time"
)

// Ruleset is all that gatewayd owns in the kernel.
type Ruleset struct {
	Tables []*Table
}

// Table is one nftables table.
type Table struct {
	Family   string // "inet" or "netdev"
	Name     string
	Counters []string
	Sets     []*Set
	Chains   []*Chain
}

// Set is a named set with timeouts.
type Set struct {
	Name     string
	Type     SetType
	Size     uint32 // limit of elements; bounds memory
	Dynamic  bool   // rules add elements
	Kept     bool   // its elements outlive an apply
	Elements []Element
}

// SetType is the key of a set.
type SetType string

// Key types of the sets in use.
const (
	KeyIfName SetType = "ifname"
	KeyMark   SetType = "mark"
	KeyTarget SetType = "ipv4_addr . inet_proto . inet_service"
)

// Element is a key with the time it has left.
type Element struct {
	Key     []byte
	Text    string
	Timeout time.Duration
}

// Chain is a base chain when Hook is set.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
}

// Hook is where a base chain sits. Its policy is accept: other interfaces are
// not ours, and what is ours ends in an explicit drop.
type Hook struct {
	Type     string // filter or nat
	Point    string // ingress, egress, prerouting, input, forward, output, postrouting
	Device   string // for ingress and egress
	Priority int32
}

// Rule is a sequence of statements.
type Rule []Statement

// Statement is one part of a rule; String gives it in the words of nft(8).
type Statement interface{ String() string }

// Table finds a table by family and name; nil when there is none.
func (r *Ruleset) Table(family, name string) *Table {
	for _, t := range r.Tables {
		if t.Family == family && t.Name == name {
			return t
		}
	}
	return nil
}

// Dump is the canonical text: what the golden files hold and the documents show.
func (r *Ruleset) Dump() string {
	var b strings.Builder
	for _, t := range r.Tables {
		fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
		for _, c := range t.Counters {
			fmt.Fprintf(&b, "\tcounter %s { }\n", c)
		}
		for _, s := range t.Sets {
			s.dump(&b)
		}
		for _, c := range t.Chains {
			fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
			if h := c.Hook; h != nil {
				dev := ""
				if h.Device != "" {
					dev = fmt.Sprintf(" device %q", h.Device)
				}
				fmt.Fprintf(&b, "\t\ttype %s hook %s%s priority %d; policy accept;\n", h.Type, h.Point, dev, h.Priority)
			}
			for _, rule := range c.Rules {
				fmt.Fprintf(&b, "\t\t%s\n", rule)
			}
			b.WriteString("\t}\n")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func (s *Set) dump(b *strings.Builder) {
	flags := "timeout"
	if s.Dynamic {
		flags = "dynamic,timeout"
	}
	fmt.Fprintf(b, "\tset %s {\n\t\ttype %s\n\t\tsize %d\n\t\tflags %s\n", s.Name, s.Type, s.Size, flags)
	for _, e := range s.Elements {
		fmt.Fprintf(b, "\t\telement %s timeout %s\n", e.Text, e.Timeout)
	}
	b.WriteString("\t}\n")
}

// String joins the statements of a rule.
func (r Rule) String() string {
	words := make([]string, len(r))
	for i, s := range r {
		words[i] = s.String()
	}
	return strings.Join(words, " ")
}
