package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/attestserver/protocol"
)

// Root gives the device of the root file system another table and leaves a
// second device with the right one over the untouched image: the probe must not
// answer for the decoy.
func TestAttackDecoyVerityDeviceIsNotAnsweredFor(t *testing.T) {
	sys := t.TempDir()
	for _, d := range []string{"dm-0/slaves/vda", "dm-1/slaves/loop0", "loop0"} {
		if err := os.MkdirAll(filepath.Join(sys, "block", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	targets := map[string]string{"dm-0": "verity", "dm-1": "verity"}
	p := &Block{Host{Sys: sys, Verity: func(device string) (protocol.Verity, error) {
		return protocol.Verity{Target: targets[device]}, nil
	}}}
	if _, below, err := p.root(); err != nil || below != "vda" {
		t.Fatalf("the root's own device: below %q, %v", below, err)
	}
	targets["dm-0"] = "linear"
	if _, below, err := p.root(); err == nil || !strings.Contains(err.Error(), "linear") {
		t.Errorf("answered for %q: %v", below, err)
	}
}
