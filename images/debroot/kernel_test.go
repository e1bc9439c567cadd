package debroot

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"portcullis/images/cpio"
	"portcullis/images/deb"
	"portcullis/images/recipe"
	"portcullis/images/squash"
)

func TestKernelAndDeviceTreesAreFoundInBothLayouts(t *testing.T) {
	for p, want := range map[string]string{
		"/boot/vmlinuz-6.12.117+deb13-arm64":                        "6.12.117+deb13-arm64",
		"/usr/lib/modules/7.3.4+deb13-arm64/vmlinuz":                "7.3.4+deb13-arm64",
		"/usr/lib/modules/7.3.4+deb13-arm64/kernel/drivers/vmlinuz": "",
		"/boot/System.map-6.12.117":                                 "",
	} {
		if got := kernelRelease(p); got != want {
			t.Errorf("%s: kernel %q", p, got)
		}
	}
	for p, want := range map[string]string{
		"/usr/lib/linux-image-6.12.117+deb13-arm64/broadcom/bcm2711-rpi-4-b.dtb": "broadcom/bcm2711-rpi-4-b.dtb",
		"/usr/lib/modules/7.3.4+deb13-arm64/dtb/broadcom/bcm2712-rpi-5-b.dtb":    "broadcom/bcm2712-rpi-5-b.dtb",
		"/usr/lib/modules/7.3.4+deb13-arm64/kernel/drivers/mmc/host/sdhci.ko.xz": "",
	} {
		if got := deviceTree(p); got != want {
			t.Errorf("%s: device tree %q", p, got)
		}
	}
}

func TestPackagesAreSortedByWhatBecomesOfThem(t *testing.T) {
	r := &recipe.Recipe{
		Packages: []string{"systemd"}, Without: []string{"linux-base", "dpkg"},
		Kernel: recipe.Kernel{Package: "linux-image-arm64", Firmware: []string{"firmware-realtek"}},
		Boot:   recipe.Boot{Firmware: "raspi-firmware"},
	}
	lock := &deb.Lock{}
	for _, n := range []string{"dpkg", "firmware-realtek", "linux-base", "linux-base-7.3.4-arm64", "linux-binary-7.3.4-arm64", "linux-image-arm64", "linux-modules-7.3.4-arm64", "raspi-firmware", "systemd"} {
		lock.Packages = append(lock.Packages, deb.Package{Name: n, Version: "1"})
	}
	p := &Packages{}
	must(t, p.split(lock, r))
	if len(p.Root) != 1 || len(p.Kernel) != 4 || len(p.Firmware) != 1 || len(p.Boot) != 1 || p.Stub.Name != "" || len(p.Used()) != 7 {
		t.Errorf("%+v", p)
	}
	// What the recipe asks for has to be among the answers.
	r.Kernel.Stub = "systemd-boot-efi"
	wantReason(t, (&Packages{}).split(lock, r), ReasonMissing)
	r.Kernel.Stub, r.Boot.Firmware = "", "other-firmware"
	wantReason(t, (&Packages{}).split(lock, r), ReasonMissing)
	r.Boot.Firmware, r.Without = "raspi-firmware", []string{"systemd"}
	wantReason(t, (&Packages{}).split(lock, r), ReasonOptions)
}

func TestPackKeepsLinksAndModes(t *testing.T) {
	archive, err := Pack([]byte("init"), map[string][]byte{"etc/a": []byte("a")}, 1,
		Extra{Path: "sbin", Link: "usr/sbin"}, Extra{Path: "usr/sbin/tool", Data: []byte("tool"), Mode: 0o755})
	must(t, err)
	for name, want := range map[string]string{"etc/a": "a", "sbin": "usr/sbin", "usr/sbin/tool": "tool"} {
		if b, err := ReadInitrd(cpio.Zstd(archive), name); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if _, err := Pack(nil, map[string][]byte{"sbin/x": nil}, 1, Extra{Path: "sbin", Link: "usr/sbin"}); err == nil {
		t.Error("a name is a directory and a link at once")
	}
}

func TestInstallableUnits(t *testing.T) {
	for text, want := range map[string]bool{
		"[Service]\n[Install]\nWantedBy=multi-user.target\n": true,
		"[Install]\nRequiredBy=a.service\n":                  true,
		"[Service]\nWantedBy=multi-user.target\n":            false,
		"[Install]\nAlias=b.service\n":                       false,
	} {
		if Installable([]byte(text)) != want {
			t.Errorf("%q", text)
		}
	}
}

// The tree behind the data opens with the words that go to the kernel.
func TestVerityOfAnImage(t *testing.T) {
	dir := t.TempDir()
	img := filepath.Join(dir, "root.img")
	tree := squash.NewTree(newTree().Time)
	noise := make([]byte, 100<<10)
	_, err := rand.NewChaCha8([32]byte{1}).Read(noise)
	must(t, err)
	must(t, tree.WriteFile("/a", 0o644, noise))
	must(t, tree.Write(context.Background(), img, squash.Options{Level: 1, BlockSize: 4096}, nil))
	v, err := AppendVerity(img)
	must(t, err)
	st, err := os.Stat(img)
	must(t, err)
	if st.Size()%4096 != 0 || uint64(st.Size()/4096) <= v.DataBlocks || len(v.RootHash) != 64 {
		t.Errorf("%+v, %d bytes", v, st.Size())
	}
	if w := v.Words(); len(w) != 2 || w[0] != "roothash="+v.RootHash {
		t.Errorf("%q", w)
	}
}

func TestProgramsOfTheLabAreFound(t *testing.T) {
	wantReason(t, GuardLabProgram("tool", []byte("…"+labPort+"…")), ReasonLabInReal)
	wantReason(t, GuardLabProgram("hpc-lab", nil), ReasonLabInReal)
	must(t, GuardLabProgram("tool", []byte("harmless")))
}
