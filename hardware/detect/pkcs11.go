package detect

import (
	"context"
	"io/fs"
	"path"
	"strings"
)

// Module is one PKCS#11 library.
type Module struct {
	Path    string  `json:"path"`
	Kind    string  `json:"kind"` // softhsm2, tpm2-pkcs11, zymbit, opensc, yubico
	Tokens  []Token `json:"tokens"`
	Problem string  `json:"problem,omitempty"`
}

// Token is one token that a module shows.
type Token struct {
	Slot        string `json:"slot"`
	Label       string `json:"label"`
	Serial      string `json:"serial,omitempty"`
	Initialised bool   `json:"initialised"`
}

// MaxTokens caps the tokens that are reported of one module.
const MaxTokens = 64

// libraries are where Debian and the vendors put their modules. Patterns of io/fs.
var libraries = []struct{ pattern, kind string }{
	{"usr/lib/softhsm/libsofthsm2.so", "softhsm2"},
	{"usr/lib/*/softhsm/libsofthsm2.so", "softhsm2"},
	{"usr/lib/*/libtpm2_pkcs11.so.1", "tpm2-pkcs11"},
	{"usr/lib/*/pkcs11/libtpm2_pkcs11.so", "tpm2-pkcs11"},
	{"usr/lib/libzk_pkcs11.so", "zymbit"},
	{"usr/lib/*/libzk_pkcs11.so", "zymbit"},
	{"usr/lib/*/opensc-pkcs11.so", "opensc"},
	{"usr/lib/*/libykcs11.so", "yubico"},
}

// modules lists the libraries that are installed and the tokens in them. Libraries
// are never loaded into this process, which is static: softhsm2-util and
// pkcs11-tool load them in theirs.
func modules(ctx context.Context, h Host) []Module {
	var out []Module
	kinds := map[string]bool{}
	for _, l := range libraries {
		names, err := fs.Glob(h.Root, l.pattern)
		if err != nil {
			continue
		}
		for _, n := range names {
			m := Module{Path: "/" + n, Kind: l.kind, Tokens: []Token{}}
			if kinds[l.kind+path.Base(n)] {
				continue // the same library by a second path
			}
			kinds[l.kind+path.Base(n)] = true
			listTokens(ctx, h, &m)
			out = append(out, m)
		}
	}
	return out
}

func listTokens(ctx context.Context, h Host, m *Module) {
	if h.Run == nil {
		return
	}
	if m.Kind == "softhsm2" {
		if b, err := h.Run(ctx, "softhsm2-util", "--show-slots"); err == nil {
			m.Tokens = append(m.Tokens, ParseSoftHSM(string(b))...)
			return
		}
	}
	b, err := h.Run(ctx, "pkcs11-tool", "--module", m.Path, "--list-token-slots")
	if err != nil {
		m.Problem = "its tokens could not be listed: " + err.Error()
		return
	}
	m.Tokens = append(m.Tokens, ParsePKCS11Tool(string(b))...)
}

// ParseSoftHSM reads the output of "softhsm2-util --show-slots".
func ParseSoftHSM(out string) []Token {
	var tokens []Token
	for _, line := range strings.Split(out, "\n") {
		if rest, ok := strings.CutPrefix(line, "Slot "); ok {
			if len(tokens) == MaxTokens {
				break
			}
			tokens = append(tokens, Token{Slot: printable(rest)})
			continue
		}
		if len(tokens) == 0 {
			continue
		}
		t := &tokens[len(tokens)-1]
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		switch value = printable(value); key {
		case "Label":
			t.Label = value
		case "Serial number":
			t.Serial = value
		case "Initialized":
			t.Initialised = value == "yes"
		}
	}
	return tokens
}

// ParsePKCS11Tool reads the output of "pkcs11-tool --list-token-slots".
func ParsePKCS11Tool(out string) []Token {
	var tokens []Token
	for _, line := range strings.Split(out, "\n") {
		if rest, ok := strings.CutPrefix(line, "Slot "); ok {
			if len(tokens) == MaxTokens {
				break
			}
			id, _, _ := strings.Cut(rest, ":")
			tokens = append(tokens, Token{Slot: printable(id)})
			continue
		}
		if len(tokens) == 0 {
			continue
		}
		t := &tokens[len(tokens)-1]
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		switch value = printable(value); strings.TrimSpace(key) {
		case "token label":
			t.Label = value
		case "serial num":
			t.Serial = value
		case "token flags":
			t.Initialised = strings.Contains(value, "token initialized")
		}
	}
	return tokens
}
