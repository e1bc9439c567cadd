package piscenario

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/lab/pi"
)

// TestRaspi3StopsInPosture: the kernel of the Pi 4's image finds its card through
// the SD controller of a BCM283x and starts pi-init from it. There is no TPM: it
// must say so and enrol nothing.
func TestRaspi3StopsInPosture(t *testing.T) {
	t.Parallel()
	began := time.Now()
	c := fresh(t, pi.Variant{Model: card.ModelPi4})
	t.Logf("image and card after %.1f s", time.Since(began).Seconds())
	began = time.Now()
	dtb := raspi3DTB(t)
	m := boot(t, c, func(cfg *pi.Config) { cfg.Firmware, cfg.TPM, cfg.DTB = pi.Raspi3, "", dtb })
	expect(t, m, `portcullis: stage=init `)
	t.Logf("pi-init speaks after %.1f s", time.Since(began).Seconds())
	expect(t, m, `portcullis: stage=card [^\n]*model=pi4 `)
	expect(t, m, `portcullis: stage=posture [^\n]*posture=none [^\n]*no chip`)
	expect(t, m, `portcullis: failed stage=posture [^\n]*reason=root-absent`)
	t.Logf("it has stopped after %.1f s", time.Since(began).Seconds())
	m.Kill()
	head := make([]byte, card.CryptHeader)
	if _, err := section(t, c, card.PartCrypt).ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(head, make([]byte, len(head))) {
		t.Error("something was enrolled without a chip")
	}
}

// raspi3DTB is the device tree of a Raspberry Pi 3 B, out of the kernel's package.
func raspi3DTB(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cache, err := debroot.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	store := &deb.Store{Dir: filepath.Join(cache, "deb")}
	request := deb.Request{Suite: "trixie", Arch: "arm64", Components: []string{"main", "non-free-firmware"}, Packages: []string{"linux-image-arm64"}}
	lock, err := store.Resolve(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	owner := regexp.MustCompile(`^linux-image-[0-9].*-arm64$`)
	wanted := regexp.MustCompile(`/broadcom/bcm2837-rpi-3-b\.dtb$`)
	out := filepath.Join(t.TempDir(), "bcm2837-rpi-3-b.dtb")
	for _, p := range lock.Packages {
		if !owner.MatchString(p.Name) {
			continue
		}
		if err := store.Fetch(ctx, request, &deb.Lock{Packages: []deb.Package{p}}, nil); err != nil {
			t.Fatal(err)
		}
		err := deb.Walk(ctx, store.Path(p), func(h *tar.Header, r io.Reader) error {
			if !wanted.MatchString(h.Name) {
				return nil
			}
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			return os.WriteFile(out, b, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(out); err != nil {
		t.Fatalf("the kernel's package has no such device tree: %v", err)
	}
	// QEMU's model of this board's watchdog counts no time: it resets the machine
	// when it is armed.
	if text, err := exec.CommandContext(ctx, "fdtput", "-t", "s", out, "/soc/watchdog@7e100000", "status", "disabled").CombinedOutput(); err != nil {
		t.Fatalf("fdtput (package device-tree-compiler): %v: %s", err, text)
	}
	return out
}

// TestReleaseProfileBoots: an image without a command channel enrols itself and
// comes up; the console is all there is to see.
func TestReleaseProfileBoots(t *testing.T) {
	t.Parallel()
	m := boot(t, fresh(t, pi.Variant{Profile: card.ProfileRelease}))
	expect(t, m, `portcullis: recovery key \(`)
	expect(t, m, `portcullis: stage=enrol-commit `)
	expect(t, m, `portcullis: stage=switch-root `)
	// The identity service runs after attestd and speaks on the console.
	expect(t, m, `portcullis: identity gateway=[A-Za-z0-9+/]{43}=`)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := m.Exec(ctx, "true"); err == nil {
		t.Error("a release image answers on the lab's command channel")
	}
}
