// Package systemd holds the units of the Pi's services; its tests hold them to the bar.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var exposure = regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)

func services(t *testing.T) []string {
	t.Helper()
	units, err := filepath.Glob("*.service")
	if err != nil || len(units) < 4 {
		t.Fatalf("units: %v %v", units, err)
	}
	return units
}

// Every service that is not root by need is sandboxed to an exposure of 2.5 or less.
func TestSandboxIsTight(t *testing.T) {
	for _, unit := range services(t) {
		if unit == "portcullis-deny.service" { // one nft call as root, before the network exists
			continue
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=25", unit).CombinedOutput()
		m := exposure.FindSubmatch(out)
		if m == nil {
			t.Fatalf("%s: systemd-analyze (package systemd) said: %v\n%s", unit, err, out)
		}
		level, perr := strconv.ParseFloat(string(m[1]), 64)
		if perr != nil || level > 2.5 {
			t.Errorf("%s: exposure %s, want at most 2.5", unit, m[1])
		}
		t.Logf("%s: exposure %s", unit, m[1])
	}
}

// The users of the units exist after systemd-sysusers has run on an empty system.
func TestUsersAreMade(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := filepath.Abs("portcullis.sysusers")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-sysusers", "--root="+root, file).CombinedOutput(); err != nil {
		t.Fatalf("systemd-sysusers (package systemd): %v\n%s", err, out)
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	for user, id := range map[string]string{"portcullis-pxe": "971", "portcullis-attest": "972", "portcullis-gateway": "973"} {
		if !strings.Contains(string(passwd), user+":x:"+id+":"+id+":") {
			t.Errorf("no user %s with id %s", user, id)
		}
	}
}

// Least privilege: what each service may hold, and nothing else.
func TestCapabilities(t *testing.T) {
	want := map[string]string{
		"gatewayd.service": "CAP_NET_ADMIN CAP_NET_RAW",
		"pxed.service":     "CAP_NET_BIND_SERVICE CAP_NET_RAW",
		"attestd.service":  "",
	}
	for unit, caps := range want {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "\nCapabilityBoundingSet="+caps+"\n") {
			t.Errorf("%s: bounding set is not %q", unit, caps)
		}
		for _, must := range []string{"\nUser=portcullis-", "\nNoNewPrivileges=yes\n", "\nLimitCORE=0\n", "\nMemoryMax="} {
			if !strings.Contains(string(b), must) {
				t.Errorf("%s lacks %q", unit, strings.TrimSpace(must))
			}
		}
	}
}

// TestInvariant01_DenyFileIsLoadedBeforeTheServices: the static deny file is required by
// and ordered before everything that listens on the PC's port.
func TestInvariant01_DenyFileIsLoadedBeforeTheServices(t *testing.T) {
	for _, unit := range services(t) {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		s := string(b)
		if unit == "portcullis-deny.service" {
			for _, must := range []string{"Before=network-pre.target", "portcullis-deny.nft"} {
				if !strings.Contains(s, must) {
					t.Errorf("%s lacks %q", unit, must)
				}
			}
			continue
		}
		if !strings.Contains(s, "Requires=portcullis-deny.service") {
			t.Errorf("%s runs without the deny file", unit)
		}
		after := regexp.MustCompile(`(?m)^After=.*gatewayd\.service|(?m)^After=.*portcullis-deny\.service`)
		if !after.MatchString(s) {
			t.Errorf("%s may start before the deny file", unit)
		}
	}
}
