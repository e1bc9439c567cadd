package expect_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

func (m *machine) enrolOne(op string) []protocol.Finding {
	m.t.Helper()
	return m.twins[op].(protocol.Enroller).Enrol(m.input(op, true))
}

func (m *machine) enrolled(op string) bool {
	m.t.Helper()
	ok, err := m.twins[op].(protocol.Enroller).Enrolled(m.state, m.refs)
	m.check(err)
	return ok
}

// The reference of kernel text is not believed blindly: outside of the sites
// that the kernel patches by itself it must be the signed kernel.
func TestEnrol_HookedKernelIsRefused(t *testing.T) {
	m := newMachine(t)
	hooked := bytes.Clone(m.text)
	hooked[0x5000] ^= 1
	m.kernel(hooked)
	m.wants(m.enrolOne(protocol.OpKtext), protocol.Fatal, expect.ReasonKtextImage, "+0x4000..+0x8000")
	if m.enrolled(protocol.OpKtext) {
		t.Error("the reference was stored all the same")
	}
}

func TestEnrol_HookInAJumpLabelIsRefused(t *testing.T) {
	m := newMachine(t)
	hooked := bytes.Clone(m.text)
	copy(hooked[100:], []byte{0xe9, 0x98, 0x01, 0, 0})
	m.kernel(hooked)
	m.wants(m.enrolOne(protocol.OpKtext), protocol.Fatal, expect.ReasonKtextImage, "+0x0..+0x4000")
}

// What is learned as different from boot to boot is a small part of the
// read-only data: a hook far from it does not get into the reference.
func TestEnrol_HookedTableIsRefused(t *testing.T) {
	m := newMachine(t)
	b := m.live()
	b[5*protocol.KtextGranule+100] ^= 1
	m.kernelImage(m.text, b)
	m.wants(m.enrolOne(protocol.OpKrodata), protocol.Fatal, expect.ReasonKrodataImage, "+0x14000..+0x18000")
	m.kernel(m.text)
	binary.LittleEndian.PutUint32(m.idt[14*16+8:], 0xffffffff)
	binary.LittleEndian.PutUint16(m.idt[14*16+6:], 0xc123)
	m.kernel(m.text)
	m.wants(m.enrolOne(protocol.OpKrodata), protocol.Fatal, expect.ReasonIDT, "vector 14")
	if m.enrolled(protocol.OpKrodata) {
		t.Error("the reference was stored all the same")
	}
}

func TestEnrol_BootTimePatchesBecomeTheReference(t *testing.T) {
	m := newMachine(t)
	patched := bytes.Clone(m.text)
	copy(patched[200:], []byte{1, 2, 3, 4, 5})
	m.kernel(patched)
	if f := m.enrolOne(protocol.OpKtext); len(f) > 0 || !m.enrolled(protocol.OpKtext) {
		t.Fatalf("%+v", f)
	}
	if f := m.judge(protocol.OpKtext); len(f) > 0 {
		t.Errorf("the same text again: %+v", f)
	}
	m.kernel(m.text)
	m.wants(m.judge(protocol.OpKtext), protocol.Fatal, expect.ReasonKtext, "+0x0")
	m.state.CPUClass = "another"
	if m.enrolled(protocol.OpKtext) {
		t.Error("the reference of one CPU class serves another one")
	}
}

func TestEnrol_HostileKernelText(t *testing.T) {
	m := newMachine(t)
	good := m.input(protocol.OpKtext, true)
	for name, edit := range map[string]func(*protocol.KtextData){
		"no sites":      func(d *protocol.KtextData) { d.Sites = nil },
		"not zstd":      func(d *protocol.KtextData) { d.Sites = []byte("sites") },
		"cut short":     func(d *protocol.KtextData) { d.Sites = d.Sites[:len(d.Sites)-3] },
		"too many":      func(d *protocol.KtextData) { d.Sites = append(bytes.Clone(d.Sites), d.Sites...) },
		"other digests": func(d *protocol.KtextData) { d.MACs[3] ^= 1 },
		"fewer digests": func(d *protocol.KtextData) { d.MACs = d.MACs[8:] },
		"another place": func(d *protocol.KtextData) { d.Base += 0x1000 },
		"another mask":  func(d *protocol.KtextData) { d.Mask = "00" },
	} {
		var d protocol.KtextData
		m.check(protocol.DecodeOp(good.Output.Data, protocol.MaxEnrolData, &d))
		edit(&d)
		b, err := protocol.EncodeOp(d)
		m.check(err)
		in := good
		in.Output = protocol.Output{Data: b, Digest: in.Key.Digest(protocol.OpKtext, in.Params, b)}
		if f := m.twins[protocol.OpKtext].(protocol.Enroller).Enrol(in); len(f) == 0 || m.enrolled(protocol.OpKtext) {
			t.Errorf("%s: taken as a reference", name)
		}
	}
	good.Key[0] ^= 1
	if f := m.twins[protocol.OpKtext].(protocol.Enroller).Enrol(good); len(f) == 0 {
		t.Error("an answer to another question was taken as a reference")
	}
}

// A kernel file that is not the mask's cannot be enrolled against.
func TestEnrol_OtherKernelFileIsUnjudged(t *testing.T) {
	m := newMachine(t)
	other := bytes.Clone(m.text)
	other[0x5000] ^= 1
	m.write(bzImage(other, len(other)), "vmlinuz")
	m.wants(m.enrolOne(protocol.OpKtext), protocol.Fatal, protocol.ProbeUnjudged, "+0x4000")
}

// Disks, USB devices and cards are found after the first question: within the
// first minutes of the enrolling boot they are added, later or on another boot
// they are not.
func TestHw_LatePartsAreLearnedInTheEnrollingBootOnly(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	m.write([]byte("0781\n"), "sys/bus/usb/devices/1-1/idVendor")
	m.uptime = time.Minute
	m.wants(m.judge(protocol.OpHw), protocol.Info, expect.ReasonHwLearned, "usb 1-1")
	if f := m.judge(protocol.OpHw); len(f) > 0 {
		t.Errorf("learned, and found again: %+v", f)
	}
	m.write([]byte("0782\n"), "sys/bus/usb/devices/1-2/idVendor")
	m.state.Session = "zyxwvutsrqponmlkjihgfedcba"
	m.wants(m.judge(protocol.OpHw), protocol.Fatal, expect.ReasonHwAdded, "usb 1-2")
}

func TestHw_LatePartsMayBeMissingAtFirst(t *testing.T) {
	m := newMachine(t)
	m.write([]byte("0781\n"), "sys/bus/usb/devices/1-1/idVendor")
	m.enrol()
	m.check(os.RemoveAll(m.path("sys/bus/usb")))
	m.uptime = 10 * time.Second
	if f := m.judge(protocol.OpHw); len(f) > 0 {
		t.Errorf("before the drivers are there: %+v", f)
	}
	m.uptime = time.Hour
	m.wants(m.judge(protocol.OpHw), protocol.Fatal, expect.ReasonHwRemoved, "usb 1-1")
}

// Noise that is not where it should be is found, whatever the agent says of it.
func TestNoise_MustBeResident(t *testing.T) {
	m := newMachine(t)
	in := m.input(protocol.OpNoise, false)
	if f := m.twins[protocol.OpNoise].Judge(in); len(f) > 0 {
		t.Fatalf("%+v", f)
	}
	h := in.Key.NewDigest(protocol.OpNoise, in.Params)
	h.Write(make([]byte, 8*64<<10))
	h.Write(in.Output.Data)
	in.Output.Digest = protocol.Sum(h)
	m.wants(m.twins[protocol.OpNoise].Judge(in), protocol.Fatal, expect.ReasonNoise, "8 random pieces")
}

// Every file that ran must be the image's, also one that has ended and is gone, and
// also where containers are approved.
func TestIma_WhatRanAndEnded(t *testing.T) {
	for _, tasks := range []bool{false, true} {
		m := newMachineWith(t, tasks)
		if f := m.judge(protocol.OpIma); len(f) > 0 {
			t.Fatalf("%+v", f)
		}
		m.measured("/tmp/kit", []byte("evil"))
		m.measured("/usr/bin/dockerd", []byte("changed"))
		found := m.judge(protocol.OpIma)
		m.wants(found, protocol.Fatal, expect.ReasonImaUnknown, "/tmp/kit")
		m.wants(found, protocol.Fatal, expect.ReasonImaChanged, "/usr/bin/dockerd")
		if f := m.judge(protocol.OpIma); len(f) > 0 {
			t.Errorf("told twice: %+v", f)
		}
	}
}

// A clock that is set fails the challenge once, and is then known.
func TestTime_ClockIsSet(t *testing.T) {
	m := newMachine(t)
	m.uptime = time.Hour
	if f := m.judge(protocol.OpTime); len(f) > 0 {
		t.Fatalf("%+v", f)
	}
	m.step = -time.Hour
	m.wants(m.judge(protocol.OpTime), protocol.Soft, expect.ReasonClockSet, "-1h0m0s")
	if f := m.judge(protocol.OpTime); len(f) > 0 {
		t.Errorf("told twice: %+v", f)
	}
}

// A machine is trusted from its first boot; the verdict says how far its
// enrolment is, and what waits for an operator.
func TestHw_WarnsUntilEnrolledAndApproved(t *testing.T) {
	m := newMachine(t)
	m.write([]byte("1.0\n"), "sys/class/dmi/id/bios_version")
	m.enrol()
	warnings := func() []string { return m.twins[protocol.OpHw].(protocol.Warner).Warnings(m.state, m.refs) }
	boot := func(session string) {
		m.state.Session, m.state.Notes = session, map[string][]byte{}
	}
	for i, want := range []string{"fingerprint enrolled over 1 of 3 boots", "fingerprint enrolled over 2 of 3 boots", ""} {
		if i > 0 {
			boot(fmt.Sprint("session", i))
		}
		if f := m.judge(protocol.OpHw); len(f) > 0 {
			t.Fatalf("boot %d: %+v", i+1, f)
		}
		if w := warnings(); len(w) > 1 || want == "" && len(w) > 0 || want != "" && w[0] != want {
			t.Errorf("boot %d warns %q", i+1, w)
		}
	}
	boot("session3")
	m.write([]byte("2.0\n"), "sys/class/dmi/id/bios_version")
	m.wants(m.judge(protocol.OpHw), protocol.Info, expect.ReasonHwReview, `dmi bios_version is "2.0", was "1.0"`)
	if f := m.judge(protocol.OpHw); len(f) > 0 {
		t.Errorf("told twice: %+v", f)
	}
	if w := warnings(); len(w) != 1 || w[0] != "fingerprint drift waits for an operator: dmi bios_version changed (review)" {
		t.Errorf("%q", w)
	}
	m.write([]byte("3.0\n"), "sys/class/dmi/id/bios_version")
	m.wants(m.judge(protocol.OpHw), protocol.Fatal, expect.ReasonHwChanged, "while the session ran")
}

// The fingerprint is of the machine: another image finds it enrolled.
func TestHw_ANewImageDoesNotEnrolAnew(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	m.state.Image.Digest[0] ^= 1
	m.state.Session = "another"
	if !m.enrolled(protocol.OpHw) {
		t.Error("a new image enrols the machine anew")
	}
	m.write([]byte("0x8086\n"), "sys/bus/pci/devices/0000:00:09.0/vendor")
	m.wants(m.judge(protocol.OpHw), protocol.Fatal, expect.ReasonHwAdded, "pci 0000:00:09.0")
}

// A card that was enrolled may stay, as long as it carries nothing.
func TestNet_EnrolledIdleCard(t *testing.T) {
	m := newMachine(t)
	m.nic("eth1", "0000:00:09.0")
	m.links = append(m.links, protocol.Link{Name: "eth1", Index: 3, MAC: "52:54:00:00:00:02", Permanent: "52:54:00:00:00:02"})
	m.enrol()
	m.wants(m.judge(protocol.OpNet), protocol.Info, expect.ReasonIdleInterface, "eth1")
	m.links[2].Up = true
	m.wants(m.judge(protocol.OpNet), protocol.Fatal, expect.ReasonSecondInterface, "eth1")
}

func TestBoot_AnotherBootWithinTheSession(t *testing.T) {
	m := newMachine(t)
	if f := m.judge(protocol.OpBoot); len(f) > 0 {
		t.Fatalf("%+v", f)
	}
	m.uptime -= time.Second
	m.wants(m.judge(protocol.OpBoot), protocol.Fatal, expect.ReasonUptime, "was up for")
	m.write([]byte("99999999-2222-3333-4444-555555555555\n"), "proc/sys/kernel/random/boot_id")
	m.wants(m.judge(protocol.OpBoot), protocol.Fatal, expect.ReasonBootID, "99999999")
	m.state.Notes = nil // attestd has started again: it knows no boot
	if f := m.judge(protocol.OpBoot); len(f) > 0 {
		t.Errorf("%+v", f)
	}
}

// An answer to another question, or with one byte changed, never passes.
func TestReplayedOrChangedAnswer(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	for _, op := range allOps {
		first := m.input(op, false)
		second := m.ask(op, false)
		second.Output = first.Output
		if f := m.twins[op].Judge(second); len(f) == 0 {
			t.Errorf("%s: an answer to another question passes", op)
		}
		if len(first.Output.Data) == 0 {
			continue
		}
		first.Output.Data = bytes.Clone(first.Output.Data)
		first.Output.Data[len(first.Output.Data)/2] ^= 1
		if f := m.twins[op].Judge(first); len(f) == 0 {
			t.Errorf("%s: a changed answer passes", op)
		}
	}
}

// The agent must not be able to choose which pages it shows.
func TestPmem_ChosenPageIsRefused(t *testing.T) {
	m := newMachine(t)
	in := m.ask(protocol.OpPmem, false)
	seg := protocol.Segment{Length: 1_003_520}
	var asked protocol.PmemParams
	m.check(json.Unmarshal(in.Params, &asked))
	// The page beside the one that follows from the seed.
	offset := (in.Key.MACs().PickPage(asked.Seed, "/usr/bin/dockerd", seg, 0) + protocol.PageSize) % seg.Length
	page := make([]byte, protocol.PageSize)
	copy(page, m.files["/usr/bin/dockerd"][offset:])
	d := protocol.PmemData{Pages: []protocol.Page{{Path: "/usr/bin/dockerd", Segment: seg, Offset: offset, PID: 300,
		MAC: in.Key.MACs().PageMAC("/usr/bin/dockerd", offset, page)}}}
	b, err := protocol.EncodeOp(d)
	m.check(err)
	in.Output = protocol.Output{Data: b, Digest: in.Key.Digest(protocol.OpPmem, in.Params, b)}
	m.wants(m.twins[protocol.OpPmem].Judge(in), protocol.Fatal, expect.ReasonPick, "/usr/bin/dockerd")
}

func TestAll_RefusesAnImageThatIsNotTheManifests(t *testing.T) {
	m := newMachine(t)
	good := m.image.Manifest.Mask.SHA256
	m.image.Manifest.Mask.SHA256 = "00"
	if _, err := expect.All(m.image); err == nil {
		t.Error("a mask that the manifest does not name was taken")
	}
	m.image.Manifest.Mask.SHA256 = good
	m.write([]byte("no squashfs"), "root.img")
	if _, err := expect.All(m.image); err == nil {
		t.Error("an image that is no squashfs was taken")
	}
}

// FuzzJudge gives every twin bytes from a hostile PC, with the right digest.
func FuzzJudge(f *testing.F) {
	m := newMachine(f)
	m.enrol()
	for i, op := range allOps {
		f.Add(uint8(i), m.input(op, false).Output.Data)
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		m.t = t
		op := allOps[int(which)%len(allOps)]
		in := m.ask(op, false)
		in.Output = protocol.Output{Data: data, Digest: in.Key.Digest(op, in.Params, data)}
		for _, found := range m.twins[op].Judge(in) {
			if found.Probe != op || found.Reason == "" || len(found.Detail) > protocol.MaxReasonBytes || found.Class.String() == "invalid" {
				t.Fatalf("%+v", found)
			}
		}
	})
}

// writes is asked when a reference is written.
type writes struct {
	protocol.References
	ask func()
}

func (w writes) Write(kind, key string, fill func(protocol.Draft) error) error {
	w.ask()
	return w.References.Write(kind, key, fill)
}

// What taking a reference takes is there once, and not once for each PC of a rack.
func TestEnrol_OneAtATime(t *testing.T) {
	m := newMachine(t)
	for _, op := range []string{protocol.OpKtext, protocol.OpKrodata} {
		in, written := m.input(op, true), false
		in.Refs = writes{in.Refs, func() {
			if written = true; !expect.Taking() {
				t.Errorf("%s: another PC's may be taken now", op)
			}
		}}
		if f := m.twins[op].(protocol.Enroller).Enrol(in); len(f) > 0 || !written {
			t.Errorf("%s: %+v", op, f)
		}
		if expect.Taking() {
			t.Errorf("%s: no other PC's can be taken", op)
		}
	}
}
