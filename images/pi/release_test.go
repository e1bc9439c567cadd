package pi

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/rootfs/boot"
)

func TestReleaseForPi4(t *testing.T) {
	keys := newKeys(t)
	o := options(t, card.ModelPi4, card.ProfileRelease, keys)
	r := build(t, o)
	files := fatFiles(t, partition(t, flashed(t, o.OutDir), card.LabelBootA), card.BootSize)
	inner := sealedTest(t, files, keys)
	for _, name := range []string{"start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2711-rpi-cm4.dtb"} {
		if len(inner[name]) == 0 {
			t.Errorf("boot.img has no %s", name)
		}
	}
	for _, name := range []string{"bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2711-rpi-cm4.dtb"} {
		tpm := "/soc/spi@7e204000/tpm@1"
		for property, want := range map[string]string{"compatible": "infineon,slb9670 tcg,tpm_tis-spi", "reg": "1", "spi-max-frequency": "32000000"} {
			if got := treeProperty(t, inner[name], tpm, property); got != want {
				t.Errorf("%s: %s of the TPM is %q, want %q", name, property, got, want)
			}
		}
		if got := treeProperty(t, inner[name], "/soc/spi@7e204000", "status"); got != "okay" {
			t.Errorf("%s: SPI is %q", name, got)
		}
	}
	modulesTest(t, inner, "bcm2835_wdt", "sdhci-iproc spi-bcm2835 tpm_tis_spi genet i2c-bcm2835 dm-crypt dm-verity squashfs", "ext4 overlay")
	if r.LabChannel || !strings.HasSuffix(r.Cmdline, "console=tty1 console=ttyS1,115200") {
		t.Errorf("%+v", r.Summary)
	}
}

func TestReleaseForPi5(t *testing.T) {
	keys := newKeys(t)
	o := options(t, card.ModelPi5, card.ProfileRelease, keys)
	build(t, o)
	files := fatFiles(t, partition(t, flashed(t, o.OutDir), card.LabelBootA), card.BootSize)
	inner := sealedTest(t, files, keys)
	for _, name := range []string{"bcm2712-rpi-5-b.dtb", "bcm2712d0-rpi-5-b.dtb"} {
		if got := treeProperty(t, inner[name], "/spi-tpm/tpm@0", "compatible"); got != "infineon,slb9670 tcg,tpm_tis-spi" {
			t.Errorf("%s: %q", name, got)
		}
	}
	modulesTest(t, inner, "bcm2835_wdt", "sdhci-brcmstb rp1_pci pinctrl-rp1 spi-gpio tpm_tis_spi macb dm-crypt dm-verity", "ext4 overlay")
	if _, ok := inner["start4.elf"]; ok {
		t.Error("a Pi 5 has its firmware in its EEPROM")
	}
}

// modulesTest checks what the initramfs loads: the watchdog's driver before all others,
// what the system is found with, and nothing that is wanted only once it is mounted.
func modulesTest(t *testing.T, files map[string][]byte, first, early, late string) {
	t.Helper()
	text, err := debroot.ReadInitrd(files[card.InitramfsFile], debroot.InitrdModules)
	must(t, err)
	list, err := boot.ParseModules(string(text))
	must(t, err)
	has := map[string]bool{}
	for _, m := range list {
		has[strings.TrimSuffix(path.Base(m), ".ko")] = true
		if _, err := debroot.ReadInitrd(files[card.InitramfsFile], strings.TrimPrefix(m, "/")); err != nil {
			t.Errorf("%s is listed: %v", m, err)
		}
	}
	if len(list) == 0 || path.Base(list[0]) != first+".ko" {
		t.Errorf("the first module is not %s: %q", first, list)
	}
	// pi-init asks the chip once all before dm-mod are loaded: no driver of hardware may
	// come after it.
	volume := slices.IndexFunc(list, func(p string) bool { return path.Base(p) == "dm-mod.ko" })
	for i, m := range list {
		if driver := strings.Contains(m, "/kernel/drivers/") && !strings.Contains(m, "/drivers/md/"); volume < 0 || driver && i > volume {
			t.Errorf("module %d, %s, and dm-mod is %d", i, m, volume)
		}
	}
	for _, m := range strings.Fields(early) {
		if !has[m] {
			t.Errorf("the initramfs lacks the module %s", m)
		}
	}
	text, err = debroot.ReadInitrd(files[card.InitramfsFile], debroot.LateModules)
	must(t, err)
	if list, err = boot.ParseModules(string(text)); err != nil {
		t.Fatal(err)
	}
	for _, m := range strings.Fields(late) {
		if has[m] || !slices.ContainsFunc(list, func(p string) bool { return path.Base(p) == m+".ko.xz" && strings.HasPrefix(p, "/usr/lib/modules/") }) {
			t.Errorf("%s is not loaded late: %q", m, list)
		}
	}
}

// sealedTest checks boot.img and boot.sig the way the Pi's bootloader does, and
// returns what is inside.
func sealedTest(t *testing.T, files map[string][]byte, keys *Keys) map[string][]byte {
	t.Helper()
	if len(files) != 4 || string(files[card.ConfigFile]) != "# Everything that is started is inside the signed boot.img.\nboot_ramdisk=1\n" {
		t.Errorf("beside boot.img: %d files, config.txt %q", len(files), files[card.ConfigFile])
	}
	img := files[card.BootImgFile]
	if len(img) == 0 || len(img) > 20<<20 {
		t.Errorf("boot.img has %d bytes, want at most 20 MiB", len(img))
	}
	m := regexp.MustCompile(`^([0-9a-f]{64})\nts: ([0-9]+)\nrsa2048: ([0-9a-f]{512})\n$`).FindSubmatch(files[card.BootSigFile])
	if m == nil {
		t.Fatalf("boot.sig:\n%s", files[card.BootSigFile])
	}
	sum := sha256.Sum256(img)
	sig, err := hex.DecodeString(string(m[3]))
	must(t, err)
	if string(m[1]) != hex.EncodeToString(sum[:]) {
		t.Error("boot.sig has another digest")
	}
	if err := rsa.VerifyPKCS1v15(&keys.Boot.PublicKey, crypto.SHA256, sum[:], sig); err != nil {
		t.Errorf("boot.sig: %v", err)
	}
	inner := fatFiles(t, bytes.NewReader(img), int64(len(img)))
	text, err := debroot.ReadInitrd(inner[card.InitramfsFile], card.InfoPath)
	must(t, err)
	info, err := card.ParseInfo(text)
	must(t, err)
	files[card.CmdlineFile] = inner[card.CmdlineFile] // for the prediction
	policyTest(t, files, info)
	return inner
}

// treeProperty reads a property with fdtget(1).
func treeProperty(t *testing.T, tree []byte, node, property string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dtb")
	must(t, os.WriteFile(path, tree, 0o644))
	out, err := exec.Command("fdtget", path, node, property).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("fdtget is needed: apt-get install device-tree-compiler")
	}
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}
