package hpcinit

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/cpio"
	"portcullis/images/deb"
	"portcullis/images/deb/debtest"
	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
	"portcullis/images/verity"
	"portcullis/internal/netns"
)

// kernelModules are what the test's machine needs, in the order of loading.
var kernelModules = []string{
	"failover", "net_failover", "virtio_net", "sha256-ssse3", "loop", "dm-mod", "dm-bufio", "reed_solomon", "dm-verity", "squashfs", "overlay",
}

// goBuild builds a static program and returns its bytes.
func goBuild(t testing.TB, pkg string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testImage is everything that a machine needs to boot, before it is signed.
type testImage struct {
	kernel  []byte
	modules map[string][]byte
	init    []byte
	root    []byte // squashfs and tree
	data    int64  // bytes of the squashfs
	tree    *verity.Tree
}

// newTestImage makes an image whose root holds the facts program as init and
// as agent, and a filler of the given size that does not compress.
func newTestImage(t testing.TB, filler int) *testImage {
	t.Helper()
	im := &testImage{init: goBuild(t, "portcullis/cmd/hpc-init")}
	im.kernel, im.modules = debtest.CloudKernel(t, "../../build/cache", kernelModules)
	tool, err := deb.NeedTool("mksquashfs", "squashfs-tools")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	facts := goBuild(t, "./testdata/facts")
	for _, d := range []string{"proc", "sys", "dev", "run", "sbin", "etc", "usr/lib/portcullis", "usr/share"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range map[string][]byte{"sbin/init": facts, AgentPath: facts, "usr/share/filler": manifesttest.Content("filler", filler)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "root.squashfs")
	if b, err := exec.Command(tool, dir, file, "-noappend", "-all-root", "-no-progress", "-comp", "zstd", "-Xcompression-level", "1").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, b)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, make([]byte, (verity.BlockSize-len(data)%verity.BlockSize)%verity.BlockSize)...)
	im.tree, err = verity.Build(bytes.NewReader(data), int64(len(data)), []byte("salt of the test, 32 bytes long."))
	if err != nil {
		t.Fatal(err)
	}
	im.data = int64(len(data))
	im.root = append(data, im.tree.Hashes...)
	return im
}

// cmdline is the signed command line.
func (im *testImage) cmdline() string {
	return fmt.Sprintf("console=ttyS0 quiet panic=-1 nokaslr lockdown=integrity init_on_free=1 roothash=%s portcullis.verity=%x,%d,%d",
		im.tree.Root(), im.tree.Salt, im.tree.DataBlocks, im.tree.DataBlocks)
}

// sign returns the envelope and the trust file for im as it is now.
func (im *testImage) sign(t testing.TB) (envelope, trust []byte) {
	t.Helper()
	described := manifesttest.New(t, func(m *manifest.Manifest) {
		m.Verity = manifest.Verity{RootHash: im.tree.Root(), Salt: fmt.Sprintf("%x", im.tree.Salt), DataBlocks: im.tree.DataBlocks, HashStart: im.tree.DataBlocks}
		m.Cmdline = im.cmdline()
		for i := range m.Artefacts {
			if m.Artefacts[i].Name == manifest.Root {
				a, err := manifest.Describe(manifest.Root, bytes.NewReader(im.root))
				if err != nil {
					t.Fatal(err)
				}
				m.Artefacts[i] = a
			}
		}
	})
	envelope, err := os.ReadFile(filepath.Join(described.Dir, manifest.Envelope))
	if err != nil {
		t.Fatal(err)
	}
	trust, err = described.Trust.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return envelope, trust
}

// initrd packs hpc-init with the modules.
func (im *testImage) initrd(t testing.TB, trust []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b, 0)
	for _, d := range []string{"dev", "etc", "etc/portcullis", "lib", "lib/modules"} {
		w.Dir(d, 0o755)
	}
	w.CharDevice("dev/console", 0o600, 5, 1)
	w.File("init", 0o755, im.init)
	w.File("etc/portcullis/trust.json", 0o644, trust)
	var list strings.Builder
	for _, m := range kernelModules {
		w.File("lib/modules/"+m+".ko", 0o644, im.modules[m])
		fmt.Fprintf(&list, "/lib/modules/%s.ko\n", m)
	}
	w.File("etc/portcullis/modules", 0o644, []byte(list.String()))
	if err := w.Close(); err != nil { // the first error of any call above stays
		t.Fatal(err)
	}
	return cpio.Zstd(b.Bytes())
}

// boot runs a machine on im against files until it powers off or restarts, and
// returns its console.
func (im *testImage) boot(t testing.TB, trust []byte, files map[string][]byte) string {
	t.Helper()
	tool, err := deb.NeedTool("qemu-system-x86_64", "qemu-system-x86")
	if err != nil {
		t.Fatal(err)
	}
	gw := netns.ForTest(t, "gw")[0]
	if err := gw.Tap("pc0"); err != nil {
		t.Fatal(err)
	}
	if err := gw.Address("pc0", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	g := &fakeGateway{t: t}
	g.serveDHCP(gw, "pc0")
	serveFiles(t, gw, files)
	strangers := listenForStrangers(t, gw, "pc0", testMAC.String())

	dir := t.TempDir()
	for name, b := range map[string][]byte{"vmlinuz": im.kernel, "initrd": im.initrd(t, trust)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// A quarter of a minute is usual; the limit is for machines that do much else.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var console bytes.Buffer
	// Without ERMS and FSRM the kernel copies and clears by words: QEMU emulates
	// string instructions element by element, and bytes make the boot twice as long.
	c := exec.CommandContext(ctx, tool, "-accel", "tcg", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", "1024", "-no-reboot", "-nodefaults", "-nographic", "-serial", "stdio",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"), "-append", im.cmdline(),
		"-netdev", "tap,id=n,ifname=pc0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,romfile=,mac="+testMAC.String())
	c.Stdout, c.Stderr = &console, &console
	if err := gw.Start(c); err != nil {
		t.Fatal(err)
	}
	err = c.Wait()
	text := strings.ReplaceAll(console.String(), "\r", "")
	if err != nil {
		t.Fatalf("the machine: %v\n%s", err, text)
	}
	t.Logf("the gateway saw %v", g.requests())
	for _, frame := range strangers() {
		t.Errorf("the PC sent what the gateway would count against it: %s", frame)
	}
	return text
}
