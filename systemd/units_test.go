// Package systemd holds the units of the Pi's services; its tests hold them to the bar.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

// rootByNeed are the services that run as root for as long as one command takes,
// with the highest exposure that each may have; their files say why.
var rootByNeed = map[string]float64{
	"portcullis-deny.service":     10, // one nft call, before the network exists
	"portcullis-commit.service":   2.8,
	"portcullis-identity.service": 2.5,
	"portcullis-import@.service":  2.5,
	"portcullis-store.service":    2.5,
}

// engineUnit runs Docker's engine, as root and for long: what it does for others it has
// to be able to do. TestTheEngineIsLocked says what it must not have.
const (
	engineUnit     = "portcullis-engine.service"
	engineExposure = 7.5
)

// Every service that is not root by need is sandboxed to an exposure of 2.5 or less.
func TestSandboxIsTight(t *testing.T) {
	for _, unit := range services(t) {
		limit := 2.5
		if l, ok := rootByNeed[unit]; ok {
			limit = l
		}
		if unit == engineUnit {
			limit = engineExposure
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=100", unit).CombinedOutput()
		m := exposure.FindSubmatch(out)
		if m == nil {
			t.Fatalf("%s: systemd-analyze (package systemd) said: %v\n%s", unit, err, out)
		}
		level, perr := strconv.ParseFloat(string(m[1]), 64)
		if perr != nil || level > limit {
			t.Errorf("%s: exposure %s, want at most %.1f", unit, m[1], limit)
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
	for user, id := range map[string]string{"portcullis-pxe": "971", "portcullis-attest": "972", "portcullis-gateway": "973",
		"portcullis-relay": "975", "portcullis-hook": "976", "portcullis-verifier": "977"} {
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

		"portcullis-relay.service": "CAP_DAC_OVERRIDE",
		"portcullis-hook.service":  "",
		"verifierd.service":        "CAP_DAC_READ_SEARCH CAP_KILL CAP_SYS_ADMIN",
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

// A service that is root says so, ends, listens to nobody and gets no packet.
func TestRootServicesAreShort(t *testing.T) {
	for _, unit := range services(t) {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		s := string(b)
		if unit == engineUnit {
			continue
		}
		_, known := rootByNeed[unit]
		if root := strings.Contains(s, "\nUser=root\n") || !strings.Contains(s, "\nUser="); root != known {
			t.Errorf("%s: root: %t, in the list: %t", unit, root, known)
		}
		if !known {
			continue
		}
		for _, must := range []string{"\nType=oneshot\n", "\nIPAddressDeny=any\n", "\nNoNewPrivileges=yes\n", "\nCapabilityBoundingSet=CAP_", "\nProtectSystem=strict\n", "\nDevicePolicy=closed\n", "\nLimitCORE=0\n"} {
			if !strings.Contains(s, must) {
				t.Errorf("%s lacks %q", unit, strings.TrimSpace(must))
			}
		}
	}
}

// What the image's builder gets is what stands here.
func TestEveryFileIsInTheImage(t *testing.T) {
	for _, pattern := range []string{"*.service", "*.mount", "*.nft", "*.sysusers", "*.rules"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v %v", pattern, names, err)
		}
		for _, n := range names {
			want, err := os.ReadFile(n)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := FS.ReadFile(n); err != nil || string(got) != string(want) {
				t.Errorf("%s: %v", n, err)
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

// TestInvariant07_TheEngineIsLocked: Docker's engine starts only behind verifierd, with
// approvers, on the disk whose key nobody keeps, and without what would let it change the
// kernel under everybody.
func TestInvariant07_TheEngineIsLocked(t *testing.T) {
	b, err := os.ReadFile(engineUnit)
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{
		"\nConditionPathExists=/etc/portcullis/approvers.json\n", "\nConditionPathIsMountPoint=/var/lib/docker\n",
		"\nRequires=portcullis-deny.service var-lib-docker.mount\n", "\nWants=verifierd.service\n",
		"\nAfter=portcullis-deny.service gatewayd.service verifierd.service var-lib-docker.mount\n",
		"\nType=notify\n", "\nIPAddressDeny=any\n", "\nNoNewPrivileges=yes\n", "\nDevicePolicy=closed\n", "\nLimitCORE=0\n", "\nMemoryMax=",
	} {
		if !strings.Contains(string(b), must) {
			t.Errorf("%s lacks %q", engineUnit, strings.TrimSpace(must))
		}
	}
	held := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindStringSubmatch(string(b))
	if held == nil || strings.HasPrefix(held[1], "~") {
		t.Fatalf("the engine's capabilities are not listed: %q", held)
	}
	for _, never := range []string{"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_BOOT", "CAP_SYS_TIME", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON"} {
		if slices.Contains(strings.Fields(held[1]), never) {
			t.Errorf("the engine holds %s", never)
		}
	}
	verifier, err := os.ReadFile("verifierd.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"\nType=notify\n", "\nBefore=portcullis-engine.service\n", "\nRuntimeDirectoryPreserve=yes\n"} {
		if !strings.Contains(string(verifier), must) {
			t.Errorf("verifierd.service lacks %q", strings.TrimSpace(must))
		}
	}
}
