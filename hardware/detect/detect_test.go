package detect

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"portcullis/hardware"
)

func prop(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func word32(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }

// board is a device tree below at.
func board(at, model, soc string, more map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	if model != "" {
		m[at+"model"] = prop(model + "\x00")
		m[at+"compatible"] = prop("raspberrypi,x\x00" + soc + "\x00")
		m[at+"serial-number"] = prop("10000000abcdef01\x00")
	}
	for k, v := range more {
		m[at+k] = prop(v)
	}
	return m
}

const (
	pi4 = "Raspberry Pi 4 Model B Rev 1.5"
	cm4 = "Raspberry Pi Compute Module 4 Rev 1.1"
	pi5 = "Raspberry Pi 5 Model B Rev 1.0"

	signed = "chosen/bootloader/signed"
)

func TestPostureIsNeverMoreThanStated(t *testing.T) {
	for name, c := range map[string]struct {
		model, soc string
		signed     string
		want       hardware.Posture
	}{
		"no device tree":                   {"", "", "", hardware.PostureCardTheft},
		"no property":                      {pi4, "brcm,bcm2711", "", hardware.PostureCardTheft},
		"nothing set":                      {pi4, "brcm,bcm2711", word32(0), hardware.PostureCardTheft},
		"SIGNED_BOOT only":                 {pi4, "brcm,bcm2711", word32(1), hardware.PostureSignedBoot},
		"Pi 4, OTP and devkey":             {pi4, "brcm,bcm2711", word32(1 | 4 | 8), hardware.PostureSignedBootOTP},
		"CM4, OTP and devkey":              {cm4, "brcm,bcm2711", word32(13), hardware.PostureSignedBootOTP},
		"Pi 4, OTP, old bootloaders start": {pi4, "brcm,bcm2711", word32(1 | 8), hardware.PostureSignedBoot},
		"Pi 5, OTP":                        {pi5, "brcm,bcm2712", word32(1 | 8), hardware.PostureSignedBootOTP},
		"Pi 5, no OTP":                     {pi5, "brcm,bcm2712", word32(1 | 4), hardware.PostureSignedBoot},
		"OTP without SIGNED_BOOT":          {pi5, "brcm,bcm2712", word32(8 | 4), hardware.PostureCardTheft},
		"unknown board":                    {"Raspberry Pi 9", "brcm,bcm9999", word32(13), hardware.PostureSignedBoot},
		"property too short":               {pi5, "brcm,bcm2712", "\x0d", hardware.PostureCardTheft},
		"property too long":                {pi5, "brcm,bcm2712", "\x00\x00\x00\x0d\x00", hardware.PostureCardTheft},
		"little endian by mistake":         {pi5, "brcm,bcm2712", "\x0d\x00\x00\x00", hardware.PostureCardTheft},
		"as text":                          {pi5, "brcm,bcm2712", "13\x00\x00", hardware.PostureCardTheft},
	} {
		more := map[string]string{}
		if c.signed != "" {
			more[signed] = c.signed
		}
		got, detail := Posture(board("", c.model, c.soc, more))
		if got != c.want || detail == "" {
			t.Errorf("%s: %s (%s) instead of %s", name, got, detail, c.want)
		}
	}
}

func TestBootImageDigest(t *testing.T) {
	hexDigest := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		value string
		ok    bool
	}{
		"hex":           {hexDigest, true},
		"hex with NUL":  {hexDigest + "\x00", true},
		"raw":           {strings.Repeat("\xab", 32), true},
		"zeros":         {strings.Repeat("\x00", 32), false},
		"zeros in hex":  {strings.Repeat("0", 64), false},
		"no hex":        {strings.Repeat("zz", 32), false},
		"short":         {hexDigest[:62], false},
		"hex with more": {hexDigest + "x", false},
	} {
		d, ok := BootImage(board("", pi5, "brcm,bcm2712", map[string]string{"chosen/bootloader/boot_img_sha256": c.value}))
		if ok != c.ok || ok && d[0] != 0xab {
			t.Errorf("%s: %x, %v", name, d, ok)
		}
	}
	if _, ok := BootImage(fstest.MapFS{}); ok {
		t.Error("a digest out of nothing")
	}
}

func TestPartition(t *testing.T) {
	for value, want := range map[string]int{word32(2): 2, word32(0): 0, word32(200): 0, "\x02": 0} {
		n, ok := Partition(board("", pi4, "brcm,bcm2711", map[string]string{"chosen/bootloader/partition": value}))
		if n != want || ok != (want != 0) {
			t.Errorf("%q: %d, %v", value, n, ok)
		}
	}
}

func TestModel(t *testing.T) {
	if b := Model(board("", cm4, "brcm,bcm2711", nil)); b.Family != "pi4" || !b.CM || b.Name != cm4 || b.Serial != "10000000abcdef01" {
		t.Errorf("%+v", b)
	}
	if b := Model(board("", "evil\x1b[31m"+strings.Repeat("x", 500), "none", nil)); strings.Contains(b.Name, "\x1b") || len(b.Name) > 128 {
		t.Errorf("%+v: it goes to a terminal", b)
	}
}

// pi is the root of a Pi with everything.
func pi() fstest.MapFS {
	m := board("proc/device-tree/", pi4, "brcm,bcm2711", map[string]string{signed: word32(13), "chosen/bootloader/partition": word32(2)})
	for k, v := range map[string]string{
		"sys/class/tpm/tpm0/tpm_version_major":             "2\n",
		"dev/tpmrm0":                                       "",
		"dev/i2c-1":                                        "",
		"sbin/zkunlockifs":                                 "",
		"var/lib/zymbit/zkenv.conf":                        "ZK_GPIO_WAKE_PIN=516\n",
		"sys/kernel/debug/gpio":                            "gpiochip0: GPIOs 512-569, parent: platform/fe200000.gpio, pinctrl-bcm2711:\n",
		"usr/lib/libzk_app_utils.so":                       "",
		"usr/lib/softhsm/libsofthsm2.so":                   "",
		"usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so": "",
		"usr/lib/aarch64-linux-gnu/opensc-pkcs11.so":       "",
	} {
		m[k] = prop(v)
	}
	return m
}

const softhsm = `Available slots:
Slot 346166123
    Slot info:
        Description:      SoftHSM slot ID 0x14a2132b
    Token info:
        Serial number:    1c3c2a2f94a2132b
        Initialized:      yes
        Label:            portcullis
Slot 1
    Token info:
        Initialized:      no
        Label:
`

func host(m fstest.MapFS) Host {
	return Host{Root: m,
		Run: func(_ context.Context, name string, args ...string) ([]byte, error) {
			if name == "softhsm2-util" {
				return []byte(softhsm), nil
			}
			return nil, errors.New("not installed")
		},
		TPM: func(_ context.Context, device string) (hardware.Identity, error) {
			return hardware.Identity{Backend: hardware.BackendTPM2, Manufacturer: "IFX", Model: device}, nil
		}}
}

func TestDetectEverything(t *testing.T) {
	r := Detect(t.Context(), host(pi()))
	if r.Recommended != hardware.BackendCombined || r.Posture != hardware.PostureSignedBootOTP || r.BootPartition != 2 || r.EFI {
		t.Errorf("%+v", r)
	}
	if len(r.TPMs) != 1 || r.TPMs[0].Device != "/dev/tpmrm0" || r.TPMs[0].Identity == nil || r.TPMs[0].Version != "2" {
		t.Errorf("%+v", r.TPMs)
	}
	if z := r.Zymbit; !z.Tools || z.WakePin != 516 || z.ComputedPin != 516 || len(z.Problems) != 0 || z.Library != "/usr/lib/libzk_app_utils.so" {
		t.Errorf("%+v", z)
	}
	if len(r.PKCS11) != 2 || len(r.PKCS11[0].Tokens) != 2 || r.PKCS11[0].Tokens[0] != (Token{"346166123", "portcullis", "1c3c2a2f94a2132b", true}) || r.PKCS11[1].Problem == "" {
		t.Errorf("%+v", r.PKCS11)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

func TestDetectProblems(t *testing.T) {
	m := pi()
	m["var/lib/zymbit/zkenv.conf"] = prop("ZK_GPIO_WAKE_PIN=4\n")
	m["sys/class/tpm/tpm0/tpm_version_major"] = prop("1\n")
	delete(m, "dev/i2c-1")
	m["sys/firmware/efi/systab"] = prop("")
	r := Detect(t.Context(), host(m))
	if r.Recommended != hardware.BackendZymbit || r.TPMs[0].Problem == "" || len(r.Zymbit.Problems) != 2 || !r.EFI {
		t.Errorf("%+v", r)
	}
	m = pi()
	delete(m, "dev/tpmrm0")
	m["var/lib/zymbit/zkenv.conf"] = prop("A=$(reboot)\n")
	m["sys/kernel/debug/gpio"] = prop("none")
	r = Detect(t.Context(), host(m))
	if r.TPMs[0].Problem == "" || len(r.Zymbit.Problems) != 2 {
		t.Errorf("%+v", r)
	}
	h := host(pi())
	h.TPM = func(context.Context, string) (hardware.Identity, error) {
		return hardware.Identity{}, errors.New("busy")
	}
	delete(h.Root.(fstest.MapFS), "sbin/zkunlockifs")
	if r = Detect(t.Context(), h); r.Recommended != "" || r.Posture != hardware.PostureNone || r.TPMs[0].Problem != "busy" {
		t.Errorf("a chip that does not answer counts: %+v", r)
	}
	// zymbitd is enough: an image with it has no tools that could disturb it.
	h.Root.(fstest.MapFS)["run/portcullis/zymbitd/zymbit.sock"] = prop("")
	if r = Detect(t.Context(), h); r.Recommended != hardware.BackendZymbit || !r.Zymbit.Daemon || r.Zymbit.Tools {
		t.Errorf("zymbitd is not seen: %+v", r)
	}
	if r = Detect(t.Context(), host(fstest.MapFS{})); r.Recommended != "" || r.Posture != hardware.PostureNone {
		t.Errorf("an empty machine: %+v", r)
	}
}

func TestRealSoftHSMIsListed(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "c.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	c := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "found me", "--so-pin", "1234", "--pin", "1234")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util (package softhsm2): %v\n%s", err, b)
	}
	r := Detect(t.Context(), Local(nil))
	for _, m := range r.PKCS11 {
		for _, k := range m.Tokens {
			if m.Kind == "softhsm2" && k.Label == "found me" && k.Initialised {
				return
			}
		}
	}
	t.Errorf("%+v", r.PKCS11)
}

func TestPKCS11Tool(t *testing.T) {
	tokens := ParsePKCS11Tool("Available slots:\nSlot 0 (0x1): Yubico YubiKey\n  token label        : PIV\n  token flags        : login required, token initialized, PIN initialized\n  serial num         : 123\nSlot 1 (0x2): x\n  (empty)\n")
	if len(tokens) != 2 || tokens[0].Label != "PIV" || !tokens[0].Initialised || tokens[0].Serial != "123" || tokens[1].Initialised {
		t.Errorf("%+v", tokens)
	}
}

func TestHeadKeepsTheFirstBytes(t *testing.T) {
	b, err := run(t.Context(), "head", "-c", "200000", "/dev/zero")
	if err != nil || len(b) != MaxOutput {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := run(t.Context(), "no-such-tool-here"); err == nil {
		t.Error("a tool that is not there ran")
	}
}

func FuzzDeviceTree(f *testing.F) {
	f.Add([]byte(word32(13)), []byte("brcm,bcm2711\x00"), []byte(strings.Repeat("ab", 32)))
	f.Fuzz(func(t *testing.T, s, compatible, digest []byte) {
		m := fstest.MapFS{signed: {Data: s}, "compatible": {Data: compatible}, "model": {Data: compatible}, "chosen/bootloader/boot_img_sha256": {Data: digest}}
		p, _ := Posture(m)
		if p == hardware.PostureSignedBootOTP && (len(s) != 4 || s[3]&9 != 9) {
			t.Errorf("%x became %s", s, p)
		}
		BootImage(m)
	})
}

func FuzzTokenLists(f *testing.F) {
	f.Add(softhsm)
	f.Add("Slot 0 (0x1): x\n  token label : y\n")
	f.Fuzz(func(t *testing.T, s string) {
		if len(ParseSoftHSM(s)) > MaxTokens || len(ParsePKCS11Tool(s)) > MaxTokens {
			t.Error("too many tokens")
		}
	})
}
