package flash

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

	"portcullis/images/blockmap"
	"portcullis/images/card"
	"portcullis/images/cpio"
	"portcullis/images/deb"
	"portcullis/images/deb/debtest"
	"portcullis/images/flash/flashtest"
)

// guestModules are for disks, the card's file system and what holds a disk, in the order of loading.
var guestModules = []string{
	"scsi_common", "scsi_mod", "virtio_scsi", "sd_mod", "fat", "nls_cp437", "nls_ascii", "vfat", "dm-mod", "loop",
}

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

// disk makes a disk of a machine: a file that is a SCSI disk which says that its medium can be removed.
func guestDisk(t testing.TB, dir, name string, size int64, more string) (path string, args []string) {
	t.Helper()
	path = filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	// The card was used before: an old header where the encrypted partition will be.
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, 8*mib), 56*mib); err != nil {
		t.Fatal(err)
	}
	return path, []string{
		"-drive", "if=none,format=raw,cache=unsafe,id=" + name + ",file=" + path + more,
		"-device", "scsi-hd,removable=on,drive=" + name + ",serial=" + name,
	}
}

// TestOnBlockDevices runs the program in a virtual machine: on a disk, killed in
// the middle and resumed, on a loop device, on disks that are in use.
func TestOnBlockDevices(t *testing.T) {
	tool, err := deb.NeedTool("qemu-system-x86_64", "qemu-system-x86")
	if err != nil {
		t.Fatal(err)
	}
	kernel, modules := debtest.CloudKernel(t, "../../build/cache", guestModules)
	i := flashtest.New(t)
	seed := []byte("schema: portcullis/seed/v1\nhostname: door\nuplink: dhcp\n")

	var initrd bytes.Buffer
	w := cpio.NewWriter(&initrd, 0)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "image", "lib", "lib/modules"} {
		w.Dir(d, 0o755)
	}
	w.CharDevice("dev/console", 0o600, 5, 1)
	w.File("init", 0o755, goBuild(t, "./testdata/guest"))
	w.File("portcullis", 0o755, goBuild(t, "portcullis/cmd/portcullis"))
	w.File("image/seed.yml", 0o644, seed)
	for name, path := range map[string]string{"pi.img.zst": i.Path, "release.pub": i.Key, "pi" + MapSuffix: strings.TrimSuffix(i.Path, ImageSuffix) + MapSuffix} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		w.File("image/"+name, 0o644, b)
	}
	var list strings.Builder
	for _, m := range guestModules {
		w.File("lib/modules/"+m+".ko", 0o644, modules[m])
		fmt.Fprintf(&list, "/lib/modules/%s.ko\n", m)
	}
	w.File("modules", 0o644, []byte(list.String()))
	if err := w.Close(); err != nil { // the first error of any call above stays
		t.Fatal(err)
	}

	dir := t.TempDir()
	for name, b := range map[string][]byte{"vmlinuz": kernel, "initrd": initrd.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Slow as a card, so that there is a middle to be killed in.
	cardPath, cardArgs := guestDisk(t, dir, "CARD-A", 2048*mib, ",throttling.bps-total=25000000")
	_, small := guestDisk(t, dir, "CARD-B", 100*mib, "")
	_, protected := guestDisk(t, dir, "CARD-C", 2048*mib, ",readonly=on")
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", "1024", "-no-reboot", "-nodefaults", "-nographic", "-serial", "stdio",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"), "-append", "console=ttyS0 quiet panic=-1 nokaslr",
		"-device", "virtio-scsi-pci",
	}
	args = append(append(append(args, cardArgs...), small...), protected...)
	// Half a minute is usual; the limit is for machines that do much else.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool, args...).CombinedOutput()
	console := strings.ReplaceAll(string(out), "\r", "")
	if err != nil {
		t.Fatalf("the machine: %v\n%s", err, console)
	}
	for _, name := range []string{
		"prepare", "list", "small", "write-protected", "killed", "resumed", "partitions", "mounted", "held", "loop",
	} {
		if !strings.Contains(console, "fact: "+name+"=ok\n") {
			t.Errorf("no line %q", "fact: "+name+"=ok")
		}
	}
	if t.Failed() {
		t.Fatal(console)
	}
	t.Log(regexp.MustCompile(`fact: (\S+-seconds=\S+)`).FindAllString(console, -1))

	// What the machine wrote, seen from outside.
	got := make([]byte, len(i.Raw))
	f, err := os.Open(cardPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	at, err := SeedOffset(bytes.NewReader(i.Raw), int64(len(i.Raw)))
	if err != nil {
		t.Fatal(err)
	}
	settings, err := card.SeedImage("seed.yml", seed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[at:at+card.SeedSize], settings) {
		t.Errorf("other settings are on the card")
	}
	copy(got[at:], i.Raw[at:at+card.SeedSize])
	if !bytes.Equal(got, i.Raw) {
		t.Error("something else is on the card than the image")
	}
	tail := make([]byte, mib)
	if _, err := f.ReadAt(tail, 2047*mib); err != nil || !blockmap.Zero(tail) {
		t.Errorf("the last MiB is not zero, %v", err)
	}
}
