//go:build soak

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"portcullis/images/cpio"
	"portcullis/images/deb"
	"portcullis/images/deb/debtest"
)

// vlanModules are 802.1Q and the firewall, in the order of loading.
var vlanModules = []string{
	"veth", "llc", "stp", "mrp", "garp", "8021q", "libcrc32c", "nfnetlink", "nf_tables", "nf_defrag_ipv4", "nf_defrag_ipv6", "nf_conntrack", "nf_conntrack_netlink",
	"nf_nat", "nft_ct", "nft_limit", "nft_log", "nft_masq", "nft_numgen", "nft_chain_nat", "nfnetlink_log", "nf_log_syslog",
}

// vlanTests run there: what passes and what does not.
const vlanTests = "^(TestInvariant01_RackOpensNoPortButItsOwn|TestInvariant01_RackPortGivenUp)$"

// TestRackOnVLANs runs tests of a rack in a virtual machine whose kernel has 802.1Q: the ports
// are VLANs of one trunk, the PCs behind access ports of a switch.
func TestRackOnVLANs(t *testing.T) {
	tool, err := deb.NeedTool("qemu-system-x86_64", "qemu-system-x86")
	if err != nil {
		t.Fatal(err)
	}
	kernel, modules := debtest.CloudKernel(t, "../../build/cache", vlanModules)
	dir := t.TempDir()
	goBuild := func(out string, args ...string) []byte {
		t.Helper()
		file := filepath.Join(dir, out)
		c := exec.Command("go", append(args, "-trimpath", "-ldflags=-s -w", "-o", file)...)
		if strings.HasPrefix(out, "guest") {
			c.Args = append(c.Args, "./testdata/guest")
		}
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if b, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, b)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var initrd bytes.Buffer
	w := cpio.NewWriter(&initrd, 0)
	made := map[string]bool{}
	parents := func(name string) {
		var up []string
		for d := filepath.Dir(name); d != "." && !made[d]; d = filepath.Dir(d) {
			made[d] = true
			up = append([]string{d}, up...)
		}
		for _, d := range up {
			w.Dir(d, 0o755)
		}
	}
	add := func(name string, b []byte) {
		name = strings.TrimPrefix(name, "/")
		parents(name)
		w.File(name, 0o755, b)
	}
	for _, d := range []string{"proc", "sys", "tmp", "run", "dev"} {
		parents(d + "/x")
	}
	w.CharDevice("dev/console", 0o600, 5, 1)
	add("init", goBuild("guest", "build"))
	add("src/gatewayd", goBuild("gatewayd", "build"))
	add("src/cmd/gatewayd/gatewayd.test", goBuild("gatewayd.test", "test", "-c"))
	for _, f := range []string{"portcullis-deny.nft", "portcullis-deny-rack.nft"} {
		b, err := os.ReadFile("../../systemd/" + f)
		if err != nil {
			t.Fatal(err)
		}
		add("src/systemd/"+f, b)
	}
	for _, f := range withLibraries(t, "nft", "nftables") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(f) == "nft" {
			f = "/usr/sbin/nft"
		}
		add(f, b)
	}
	list := ""
	for _, m := range vlanModules {
		add("lib/modules/"+m+".ko", modules[m])
		list += "/lib/modules/" + m + ".ko\n"
	}
	add("modules", []byte(list))
	add("args", []byte("-test.v -test.run "+vlanTests))
	if err := w.Close(); err != nil { // the first error of any call above stays
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"vmlinuz": kernel, "initrd": initrd.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool, "-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", "1024", "-no-reboot", "-nodefaults", "-nographic",
		"-serial", "stdio", "-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"), "-append", "console=ttyS0 quiet panic=-1 nokaslr").CombinedOutput()
	console := strings.ReplaceAll(string(out), "\r", "")
	passed := regexp.MustCompile(`(?m)^--- PASS: (\S+)`).FindAllString(console, -1)
	if err != nil || len(passed) != strings.Count(vlanTests, "Test") || strings.Contains(console, "--- FAIL") {
		t.Fatalf("passed %q, %v\n%s", passed, err, console)
	}
	t.Log(fmt.Sprint(passed))
}

var libraryLine = regexp.MustCompile(`(?:=> )?(/\S+) \(0x`)

// withLibraries are a program of this machine and the libraries that it is linked with.
func withLibraries(t *testing.T, name, pkg string) []string {
	t.Helper()
	path, err := deb.NeedTool(name, pkg)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", path, err)
	}
	files := []string{path}
	for _, m := range libraryLine.FindAllStringSubmatch(string(out), -1) {
		files = append(files, m[1])
	}
	return files
}
