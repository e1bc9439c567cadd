package dockerd

import (
	"os"
	"strings"
	"testing"
)

// Every engine is run by `make soak`, and none is known by half a name.
func TestKinds(t *testing.T) {
	b, err := os.ReadFile("../../deploy/soak.sh")
	if err != nil {
		t.Fatal(err)
	}
	if want := "for e in " + strings.Join(Kinds(), " ") + "; do"; !strings.Contains(string(b), want) {
		t.Errorf("deploy/soak.sh has not %q", want)
	}
	for _, name := range Kinds() {
		if k, err := kindOf(name); err != nil || k.name != name || k.remapped != strings.HasSuffix(name, Remapped) {
			t.Errorf("%s: %+v %v", name, k, err)
		}
	}
	if k, err := kindOf(""); err != nil || k.name != Machine || k.remapped {
		t.Errorf("without a name: %+v %v", k, err)
	}
	for _, name := range []string{"v28", V29Containerd + Remapped, Machine + Remapped + Remapped, "v29 "} {
		if _, err := kindOf(name); err == nil {
			t.Errorf("%q is an engine", name)
		}
	}
}
