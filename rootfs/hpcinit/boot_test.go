package hpcinit

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"portcullis/images/manifest"
)

// TestBootToInit boots a real kernel through the whole sequence and looks
// around in the system that comes out of it.
func TestBootToInit(t *testing.T) {
	im := newTestImage(t, 8<<20)
	envelope, trust := im.sign(t)
	console := im.boot(t, trust, map[string][]byte{manifest.Envelope: envelope, manifest.Root: im.root})
	last := 0.0
	for _, stage := range []string{StageInit, StageNetwork, StageManifest, StageRoot, StageVerity, StageAgent, StageSwitchRoot} {
		m := regexp.MustCompile(`(?m)^portcullis: stage=` + stage + ` t=([0-9]+\.[0-9]{2})( .*)?$`).FindStringSubmatch(console)
		if m == nil {
			t.Errorf("no line of stage %s", stage)
			continue
		}
		at, err := strconv.ParseFloat(m[1], 64)
		if err != nil || at < last {
			t.Errorf("stage %s ended at %s, after %.2f", stage, m[1], last)
		}
		last = at
	}
	root := im.tree.Root()
	for what, want := range map[string]string{
		"modules are loaded":               "portcullis: stage=modules t=[0-9.]+ loaded=11 failed=0",
		"init is PID 1":                    "fact: pid=1",
		"the root is the overlay":          "fact: mount=root / overlay rw,relatime,lowerdir=/image,upperdir=/writable/upper,.*",
		"nothing of the initramfs is left": "fact: root=/dev /etc /proc /run /sbin /sys /usr",
		"the note is private":              "fact: note-mode=<nil> -rw-------",
		"the note is right":                "fact: note=<nil> " + testSession + " 10.77.0.1:7443 /dev/dm-0 /dev/loop0 " + root + " [0-9a-f]{64}",
		"the agent knows itself":           "fact: agent-exe=<nil> /usr/lib/portcullis/hpc-agent",
		"the agent has its own session":    "fact: agent-session=true",
		"init's root, mounts of its own":   "fact: agent-root=exe=/usr/lib/portcullis/hpc-agent root=/ err=<nil> same-mounts=false parent=1",
		"the upper layer can be written":   "fact: write-upper=<nil>",
		"the upper layer has an end":       "fact: grow-upper=true",
		"the verity device cannot":         "fact: write-verity=.*operation not permitted",
		"nor the device below it":          "fact: write-loop=.*operation not permitted",
		"the image reads well":             "fact: read-filler=8388608 bytes, <nil>",
		"huge pages are as they were":      "fact: shmem=.*\\[never\\].*",
		"the end was reached":              "fact: end=ok",
	} {
		if !regexp.MustCompile("(?m)^" + want + "$").MatchString(console) {
			t.Errorf("%s: no line %q", what, want)
		}
	}
	if n := strings.Count(console, "fact: mount="); n != 5 {
		t.Errorf("%d mounts instead of root, proc, sys, dev and run", n)
	}
	show(t, console)
}

// One byte of the root image is wrong on the gateway, consistently: the PC
// refuses it by name and starts anew, and init is never reached.
func TestAttackCorruptRootImageIsRefused(t *testing.T) {
	im := newTestImage(t, 3<<20)
	envelope, trust := im.sign(t)
	bad := bytes.Clone(im.root)
	bad[2*manifest.ChunkSize+12345] ^= 0x10
	console := im.boot(t, trust, map[string][]byte{manifest.Envelope: envelope, manifest.Root: bad})
	want := `(?m)^portcullis: failed stage=root t=[0-9.]+ reason=chunk-digest detail="1 chunks of root.img are wrong twice, the first is chunk 2"$`
	if !regexp.MustCompile(want).MatchString(console) {
		t.Errorf("no line %q", want)
	}
	if strings.Contains(console, "fact: ") || strings.Contains(console, "stage=verity") {
		t.Error("the boot went on")
	}
	if !strings.Contains(console, "reboot: Restarting system") {
		t.Error("the machine did not restart")
	}
	show(t, console)
}

// A block that differs from what the tree was made of passes the fetch, as its
// chunk digest is signed, and is caught by dm-verity when it is read: the
// reader gets an error, not the bytes.
func TestAttackBlockBehindTheManifestIsCaughtByVerity(t *testing.T) {
	im := newTestImage(t, 8<<20)
	im.root[im.data/2] ^= 0x01 // in the middle of the filler, which is most of the image
	envelope, trust := im.sign(t)
	console := im.boot(t, trust, map[string][]byte{manifest.Envelope: envelope, manifest.Root: im.root})
	for _, want := range []string{"portcullis: stage=switch-root", "fact: read-filler=input/output error", "fact: end=ok"} {
		if !strings.Contains(console, want) {
			t.Errorf("no %q", want)
		}
	}
	show(t, console)
}

// show prints the lines of hpc-init and of the facts program, or everything
// when the test has failed.
func show(t *testing.T, console string) {
	if t.Failed() {
		t.Log(console)
		return
	}
	for l := range strings.SplitSeq(console, "\n") {
		if strings.Contains(l, "portcullis: ") || strings.Contains(l, "fact: uptime") || strings.Contains(l, "fact: read-seconds") {
			t.Log(l)
		}
	}
}
