package card

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
)

func TestBootDigestSeesEveryFileButThePolicy(t *testing.T) {
	files := map[string][]byte{KernelFile: []byte("kernel"), InitramfsFile: []byte("initramfs"), CmdlineFile: []byte("cmdline")}
	base := BootDigest(files)
	for name := range files {
		old := files[name]
		files[name] = append([]byte("x"), old...)
		if BootDigest(files) == base {
			t.Errorf("a change of %s is not seen", name)
		}
		files[name] = old
	}
	files["extra"] = nil
	if BootDigest(files) == base {
		t.Error("an added file is not seen")
	}
	delete(files, "extra")
	files[PolicyFile] = []byte("signed later")
	if BootDigest(files) != base {
		t.Error("the policy blesses these files: it cannot be among them")
	}
	measured := MeasuredDigest(files)
	base = BootDigest(files)
	files[UKIFile] = []byte("what UEFI starts")
	if BootDigest(files) == base {
		t.Error("the manifest does not see what UEFI starts")
	}
	if MeasuredDigest(files) != measured || measured != base {
		t.Error("what UEFI starts and measures is measured again")
	}
	// A name that runs into the next file's line must not give the same listing.
	a := BootDigest(map[string][]byte{"a": []byte("1"), "b": []byte("2")})
	b := BootDigest(map[string][]byte{"a": []byte("12"), "b": nil})
	if a == b {
		t.Error("the listing does not frame its files")
	}
}

func TestBootDigestOfSignedImageIsThatOfTheBootloader(t *testing.T) {
	img := []byte("boot image")
	got := BootDigest(map[string][]byte{BootImgFile: img, BootSigFile: []byte("sig"), ConfigFile: []byte("boot_ramdisk=1")})
	if got != sha256.Sum256(img) {
		t.Errorf("%x is not the file's own digest", got)
	}
}

func TestCmdlineOfTheImage(t *testing.T) {
	const own = CmdlineMark + " roothash=00 console=ttyS1"
	for name, c := range map[string]struct {
		proc string
		ok   bool
	}{
		"as built":                         {own, true},
		"line feed at the end":             {own + "\n", true},
		"firmware's words in front":        {"coherent_pool=1M 8250.nr_uarts=0 snd_bcm2835.enable_hdmi=1 bcm2708_fb.fbwidth=0 smsc95xx.macaddr=D8:3A:DD:00:00:01 vc_mem.mem_base=0x3ec00000 " + own, true},
		"no mark":                          {"console=ttyS1", false},
		"empty":                            {"", false},
		"init before the mark":             {"rdinit=/bin/sh " + own, false},
		"module parameter before the mark": {"dm_verity.require_signatures=0 " + own, false},
		"key with a known beginning":       {"video_evil=1 " + own, false},
		"mark twice":                       {own + " " + own, false},
	} {
		got, err := Cmdline(c.proc)
		if c.ok && (err != nil || got != own) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if !c.ok && !errors.Is(err, ErrCmdline) {
			t.Errorf("%s: accepted as %q, %v", name, got, err)
		}
	}
	// What stands behind the mark is measured: an appended word is another value.
	got, err := Cmdline(own + " init=/bin/sh")
	if err != nil || !strings.HasSuffix(got, "init=/bin/sh") {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzCmdline(f *testing.F) {
	f.Add(CmdlineMark + " a=b")
	f.Add("video=x " + CmdlineMark)
	f.Fuzz(func(t *testing.T, s string) {
		own, err := Cmdline(s)
		if err == nil && !strings.HasPrefix(own, CmdlineMark) {
			t.Errorf("%q", own)
		}
	})
}
