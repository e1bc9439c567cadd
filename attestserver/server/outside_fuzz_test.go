package server

import (
	"strings"
	"testing"
)

// FuzzParseAsk: what a stranger posts is a question within its bounds, or an error.
func FuzzParseAsk(f *testing.F) {
	for _, s := range []string{"", "{", "null", "[]", `{"nonce":"AAECAwQFBgcICQoLDA0ODw","context":"before:task-7","probes":["boot"],"checkpoint":"","pc":"rack-1"}`,
		`{"nonce":"AB"}`, `{"nonce":"!"}`, `{"nonce":1}`, `{"root":true}`, `{"nonce":""} {}`, `{"probes":[` + strings.Repeat(`"boot",`, 40) + `"boot"]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := parseAsk(b)
		if (r == nil) == (err == nil) {
			t.Fatal("neither a value nor an error")
		}
		if r != nil && (len(r.Probes) > maxAskProbes || len(r.Nonce) > len(b)) {
			t.Fatalf("out of bounds: %d probes, a nonce of %d", len(r.Probes), len(r.Nonce))
		}
	})
}
