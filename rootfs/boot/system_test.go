package boot

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/internal/netns"
)

// Once sealed, the image cannot be changed through any descriptor or mapping:
// this is what root inside the PC would try.
func TestAttackWriteToSealedImage(t *testing.T) {
	m, err := NewImage("root.img", 3*BlockSize)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	copy(m.Bytes, "content")
	if err := m.Seal(); err != nil {
		t.Fatal(err)
	}
	if m.Bytes != nil {
		t.Error("the mapping is still there")
	}
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", m.File.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for name, f := range map[string]*os.File{"own descriptor": m.File, "opened again": again} {
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Errorf("%s: written", name)
		}
		if err := f.Truncate(BlockSize); err == nil {
			t.Errorf("%s: truncated", name)
		}
		if err := f.Truncate(8 * BlockSize); err == nil {
			t.Errorf("%s: grown", name)
		}
		if b, err := unix.Mmap(int(f.Fd()), 0, BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			unix.Munmap(b)
			t.Errorf("%s: mapped for writing", name)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, 0); err == nil {
			t.Errorf("%s: seals can still be changed", name)
		}
	}
	b := make([]byte, 7)
	if _, err := m.File.ReadAt(b, 0); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestImageSizes(t *testing.T) {
	for _, size := range []int64{0, -1} {
		if m, err := NewImage("x", size); ReasonOf(err) != ReasonMemoryImage {
			t.Errorf("%d: %v, %v", size, m, err)
		}
	}
}

func TestLinksAddressesAndRoutes(t *testing.T) {
	hosts := netns.ForTest(t, "pc", "gw")
	pc, gw := hosts[0], hosts[1]
	if err := netns.Veth(pc, "eth0", gw, "pc0"); err != nil {
		t.Fatal(err)
	}
	if err := gw.Address("pc0", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	err := pc.Do(func() error {
		watch, err := WatchLinks()
		if err != nil {
			return err
		}
		defer watch.Close()
		l := linkNamed(t, "eth0")
		if !l.Ethernet || l.Loopback || !l.Up || len(l.MAC) != 6 {
			t.Errorf("eth0 is %+v", l)
		}
		if lo := linkNamed(t, "lo"); !lo.Loopback || lo.Ethernet {
			t.Errorf("lo is %+v", lo)
		}
		for _, up := range []bool{false, true} {
			if err := SetLink(l.Index, up); err != nil {
				return err
			}
			waitLink(t, watch, func(c Link) bool { return c.Index == l.Index && c.Up == up && c.Carrier == up })
		}
		p := netip.MustParsePrefix("10.77.0.2/24")
		for range 2 { // the second time it is there already
			if err := AddAddress(l.Index, p); err != nil {
				return err
			}
			if err := AddDefaultRoute(l.Index, netip.MustParseAddr("10.77.0.1")); err != nil {
				return err
			}
		}
		if err := AddDefaultRoute(l.Index, netip.MustParseAddr("192.0.2.1")); err == nil {
			t.Error("a route over a neighbour that is none was accepted")
		}
		if err := SetLink(99999, true); err == nil {
			t.Error("an interface that is not there was brought up")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := gw.Listen("tcp", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := pc.Dial(t.Context(), "tcp", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.LocalAddr().String(); !strings.HasPrefix(got, "10.77.0.2:") {
		t.Errorf("the connection comes from %s", got)
	}
	out, err := pc.Run(t.Context(), "ip", "-o", "route", "get", "203.0.113.10")
	if err != nil || !slices.Contains(strings.Fields(string(out)), "10.77.0.1") {
		t.Errorf("the way to the rest of the world: %v %s", err, out)
	}
}

func linkNamed(t *testing.T, name string) Link {
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("no %s in %+v", name, links)
	return Link{}
}

func waitLink(t *testing.T, w *LinkWatch, want func(Link) bool) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		links, err := w.Wait(deadline)
		if err != nil {
			t.Fatalf("waiting for a link: %v", err)
		}
		if slices.ContainsFunc(links, want) {
			return
		}
	}
}

func FuzzLinkMessages(f *testing.F) {
	b := native.AppendUint32(nil, 16+16+8)
	b = native.AppendUint16(b, unix.RTM_NEWLINK)
	b = append(b, make([]byte, 26)...)
	f.Add(appendAttr(b, unix.IFLA_IFNAME, []byte("e0\x00\x00")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		parseLinks(b) // the kernel writes these; still nothing may panic in PID 1
	})
}

// The initramfs is deleted through descriptors: a link to another place, or
// another filesystem mounted below, keeps its files.
func TestEmptyInitramfsStaysInside(t *testing.T) {
	outside := t.TempDir()
	keep := filepath.Join(outside, "keep")
	if err := os.WriteFile(keep, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ram := t.TempDir()
	mount(t, ram)
	for _, d := range []string{"bin/deep/er", "mnt"} {
		if err := os.MkdirAll(filepath.Join(ram, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, filepath.Join(ram, "mnt"))
	kept := filepath.Join(ram, "mnt", "kept")
	for _, f := range []string{filepath.Join(ram, "bin/deep/er/x"), filepath.Join(ram, "init"), kept} {
		if err := os.WriteFile(f, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(ram, "link")); err != nil {
		t.Fatal(err)
	}
	if err := empty(ram); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(ram)
	if err != nil || len(left) != 1 || left[0].Name() != "mnt" {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, f := range []string{keep, kept} {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
}

// A root on a disk is never emptied, whatever calls this.
func TestEmptyInitramfsSparesDisks(t *testing.T) {
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		dir = "."
	}
	f := filepath.Join(dir, "keep")
	if err := os.WriteFile(f, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f)
	if err := empty(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f); err != nil {
		t.Error(err)
	}
}

func empty(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return emptyInitramfs(fd)
}

func mount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}
