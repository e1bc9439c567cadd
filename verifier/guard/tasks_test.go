package guard

import (
	"strings"
	"testing"
)

func TestParseShim(t *testing.T) {
	line := func(words ...string) string { return strings.Join(words, "\x00") + "\x00" }
	for text, want := range map[string]shim{
		line("/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", "abc", "-address", "/run/containerd/containerd.sock"): {0, "moby", "abc", "/run/containerd/containerd.sock"},
		line("containerd-shim-runc-v2", "-debug", "--id", "abc", "--address", "/x", "--namespace", "evil"):                          {0, "evil", "abc", "/x"},
		line("sh", "-c", "containerd-shim-runc-v2 -id x -address y"):                                                                {},
		line("containerd-shim-runc-v2", "-namespace", "moby"):                                                                       {},
		line("containerd-shim-runc-v2", "-id"):                                                                                      {},
		"":                                                                                                                          {},
	} {
		s, ok := parseShim(text)
		if ok != (want != shim{}) || ok && s != want {
			t.Errorf("%q: %+v %t", text, s, ok)
		}
	}
}

// Anybody writes what he likes on a command line.
func FuzzParseShim(f *testing.F) {
	f.Add("/usr/bin/containerd-shim-runc-v2\x00-namespace\x00moby\x00-id\x00abc\x00-address\x00/run/containerd/containerd.sock\x00")
	f.Add("containerd-shim\x00-id\x00-id\x00-address")
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := parseShim(line); ok && (s.id == "" || s.where == "" || strings.Contains(s.id+s.where+s.space, "\x00")) {
			t.Errorf("%q: %+v", line, s)
		}
	})
}
