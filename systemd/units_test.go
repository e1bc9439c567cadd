// Package systemd holds the units of the Pi's services; its tests hold them to the bar.
package systemd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"portcullis/verifier/gate"
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
		"gatewayd.service":  "CAP_NET_ADMIN CAP_NET_RAW",
		"pxed.service":      "CAP_NET_BIND_SERVICE CAP_NET_RAW",
		"gatewayd@.service": "CAP_NET_ADMIN CAP_NET_RAW",
		"pxed@.service":     "CAP_NET_BIND_SERVICE CAP_NET_RAW",
		"attestd.service":   "",

		"portcullis-relay.service":     "CAP_DAC_OVERRIDE",
		"portcullis-hook.service":      "",
		"portcullis-attestkey.service": "",
		"verifierd.service":            "CAP_DAC_OVERRIDE CAP_KILL CAP_NET_BIND_SERVICE CAP_SYS_ADMIN",
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
	for _, pattern := range []string{"*.service", "*.mount", "*.slice", "*.nft", "*.sysusers", "*.tmpfiles", "*.rules"} {
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
			for _, must := range []string{"Before=network-pre.target", "DENY=/usr/lib/portcullis/portcullis-deny.nft\n", "/nft -D port=${PORT} -f ${DENY}\n"} {
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
// A firewall of the system's own is not stopped and not fought: it goes first, since its file begins
// with a flush of everything. Ended or loaded anew later it is gatewayd that puts the static deny back.
func TestInvariant01_AFlushAtBootComesBeforeTheDeny(t *testing.T) {
	b, err := os.ReadFile("portcullis-deny.service")
	if err != nil {
		t.Fatal(err)
	}
	after, fought := false, false
	for _, line := range strings.Split(string(b), "\n") {
		key, value, _ := strings.Cut(line, "=")
		named := slices.Contains(strings.Fields(value), "nftables.service")
		after = after || key == "After" && named
		fought = fought || key == "Conflicts" && named
	}
	if !after || fought {
		t.Errorf("after nftables.service %t, in conflict with it %t", after, fought)
	}
}

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
		"\nLogRateLimitIntervalSec=0\n", // the journal's limit would be one for all services in containers
	} {
		if !strings.Contains(string(b), must) {
			t.Errorf("%s lacks %q", engineUnit, strings.TrimSpace(must))
		}
	}
	// Seen with systemd 257: with User=, seccomp and NoNewPrivileges it keeps CAP_SETUID to
	// set the service up and takes it away from root, too; no container starts then.
	if strings.Contains(string(b), "\nUser=") {
		t.Errorf("%s names a user: the engine would lose CAP_SETUID", engineUnit)
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
	var daemon struct {
		Default  string                       `json:"default-runtime"`
		Runtimes map[string]map[string]string `json:"runtimes"`
	}
	settings, err := os.ReadFile("../rootfs/pi/files/daemon.json")
	if err == nil {
		err = json.Unmarshal(settings, &daemon)
	}
	if err != nil || daemon.Default != gate.Runtime || len(daemon.Runtimes) != 1 || daemon.Runtimes[gate.Runtime]["path"] != "/usr/lib/portcullis/runc-gate" {
		t.Errorf("the engine's runtimes: %+v, %v", daemon, err)
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

// verifierd reads past all modes, for layers: what the other services keep is not in its sight.
func TestVerifierdSeesNoStateOfOthers(t *testing.T) {
	b, err := os.ReadFile("verifierd.service")
	if err != nil {
		t.Fatal(err)
	}
	hidden := regexp.MustCompile(`(?m)^InaccessiblePaths=(.*)$`).FindStringSubmatch(string(b))
	if hidden == nil {
		t.Fatal("nothing is hidden")
	}
	state := regexp.MustCompile(`(?m)^StateDirectory=(.*)$`)
	for _, unit := range services(t) {
		u, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range state.FindAllStringSubmatch(string(u), -1) {
			for _, dir := range strings.Fields(m[1]) {
				top, rest, _ := strings.Cut(dir, "/") // all of a rack's PCs lie in one directory
				first, _, _ := strings.Cut(rest, "/")
				path := filepath.Join("/var/lib", top, first)
				if unit != "verifierd.service" && !slices.Contains(strings.Fields(hidden[1]), "-"+path) {
					t.Errorf("verifierd sees %s, of %s", path, unit)
				}
			}
		}
	}
}

// A service that verifierd runs is not a unit at the same time, has its directories and its
// key without one, and what it has mounted stays where it is.
func TestContainedServicesStepBack(t *testing.T) {
	for unit, must := range map[string]string{
		"pxed.service":                 "ConditionPathExists=!/etc/portcullis/contained/pxed",
		"attestd.service":              "ConditionPathExists=!/etc/portcullis/contained/attestd",
		"portcullis-attestkey.service": "ConditionPathExists=/etc/portcullis/contained/attestd",
		"gatewayd.service":             "RuntimeDirectoryPreserve=yes",
	} {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "\n"+must+"\n") {
			t.Errorf("%s lacks %q", unit, must)
		}
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"systemd-sysusers", "--root=" + root}, {"systemd-tmpfiles", "--create", "--root=" + root}} {
		file, err := filepath.Abs(map[string]string{"systemd-sysusers": "portcullis.sysusers", "systemd-tmpfiles": "portcullis.tmpfiles"}[argv[0]])
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(argv[0], append(argv[1:], file)...).CombinedOutput(); err != nil {
			t.Fatalf("%s (package systemd): %v\n%s", argv[0], err, out)
		}
	}
	for dir, want := range map[string]string{"run/portcullis/pxed": "drwxrwxr-x 971 977", "run/portcullis/attestd": "drwxr-xr-x 972 972",
		"var/lib/portcullis/pxed": "drwx------ 971 971", "var/lib/portcullis/attestd": "drwx------ 972 972", "var/lib/portcullis/images": "drwxr-xr-x 0 0"} {
		st, err := os.Stat(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		sys := st.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%s %d %d", st.Mode(), sys.Uid, sys.Gid); got != want {
			t.Errorf("%s is %s, want %s", dir, got, want)
		}
	}
}

// A port of a rack is served by the same unit with the same sandbox: only whom it serves,
// its files, its order and the networks of the rack are others.
func TestTemplatesAreTheUnitsOfOnePort(t *testing.T) {
	for _, name := range []string{"gatewayd", "pxed"} {
		of := func(file string) (lines []string) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range strings.Split(string(b), "\n") {
				key, _, _ := strings.Cut(l, "=")
				if !strings.HasPrefix(l, "#") && !slices.Contains([]string{"Description", "After", "Before", "Wants", "ConditionPathExists", "ExecStart",
					"RuntimeDirectory", "StateDirectory", "IPAddressAllow"}, key) {
					lines = append(lines, l)
				}
			}
			return lines
		}
		if one, template := of(name+".service"), of(name+"@.service"); !slices.Equal(one, template) {
			t.Errorf("%s: the template's lines are\n%s\nand not\n%s", name, strings.Join(template, "\n"), strings.Join(one, "\n"))
		}
		b, err := os.ReadFile(name + "@.service")
		if err != nil {
			t.Fatal(err)
		}
		for _, must := range []string{"ExecStart=/usr/lib/portcullis/" + name + " --pc %i --config /etc/portcullis/pcs/%i.yaml",
			"RuntimeDirectory=portcullis/pcs/%i/" + name, "StateDirectory=portcullis/pcs/%i/" + name} {
			if !strings.Contains(string(b), "\n"+must+"\n") {
				t.Errorf("%s@.service lacks %q", name, must)
			}
		}
	}
}
