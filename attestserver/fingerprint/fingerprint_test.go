package fingerprint

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/images/manifest"
)

const mac = "52:54:00:00:00:01"

// memory keeps references in a map.
type memory map[string][]byte

func (m memory) Get(kind, key string) ([]byte, error) {
	if b, ok := m[kind+"/"+key]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (m memory) Put(kind, key string, data []byte) error {
	m[kind+"/"+key] = bytes.Clone(data)
	return nil
}

func (memory) Write(string, string, func(protocol.Draft) error) error { return fs.ErrInvalid }

func (memory) Open(string, string) (protocol.Reference, error) { return nil, fs.ErrNotExist }

// pc is a machine with its record.
type pc struct {
	t     testing.TB
	refs  memory
	o     Observation
	parts map[string]string // "class slot" → value
}

func newPC(t testing.TB) *pc {
	p := &pc{t: t, refs: memory{}, o: Observation{Machine: mac, Session: "boot1", Image: "image1", Uptime: time.Minute}, parts: map[string]string{
		"cpu model": "Maker CPU", "cpu microcode": "0x10", "dmi board_serial": "B1", "dmi bios_version": "1.0", "dmi chassis_asset_tag": "T1",
		"pci 0000:00:03.0": "0x1af4", "usb 1-1": "keyboard", "block SER-A": "1000", "nic 52:54:00:00:00:01": "0000:00:03.0",
		"dimm 0": "32768 MiB", "acpi DSDT": "aa", "acpi FACP": "bb", "memmap firmware": "cc", "tsc khz": "3000000", "memory kib": "1000000",
		"thunderbolt 0-0": "host", "cache index0": "1 Data 32K"}}
	if err := Enrol(p.refs, p.seen(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pc) seen() Observation {
	o := p.o
	o.Parts = nil
	for k, v := range p.parts {
		class, slot, _ := strings.Cut(k, " ")
		o.Parts = append(o.Parts, Part{Class: class, Slot: slot, Value: v})
	}
	order(o.Parts)
	return o
}

func (p *pc) observe() *Result {
	p.t.Helper()
	r, err := Observe(p.refs, p.seen())
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *pc) boot(n int) { p.o.Session, p.o.Uptime = fmt.Sprintf("boot%d", n), time.Minute }

// enrol goes through the enrolling boots and into a fourth.
func (p *pc) enrol() {
	p.t.Helper()
	for n := 2; n <= EnrolBoots+1; n++ {
		p.boot(n)
		if r := p.observe(); len(r.Changes) > 0 {
			p.t.Fatalf("boot %d: %v", n, r.Changes)
		}
	}
}

func (p *pc) record() *Record {
	p.t.Helper()
	r, err := Load(p.refs, mac)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := r.Check(); err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *pc) pending() *Pending {
	p.t.Helper()
	w, err := LoadPending(p.refs, mac)
	if err != nil {
		p.t.Fatal(err)
	}
	return w
}

func operator(t testing.TB) (ed25519.PrivateKey, []ed25519.PublicKey) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private, []ed25519.PublicKey{public}
}

func (p *pc) sign(key ed25519.PrivateKey) []byte {
	p.t.Helper()
	b, err := NewApproval(p.record(), p.pending(), time.Now(), "").Sign(key)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func reasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// Each kind of drift has its class.
func TestDrift_Classes(t *testing.T) {
	for _, c := range []struct {
		name  string
		do    func(*pc)
		want  Level
		part  string
		which string
	}{
		{"another network card's MAC", func(p *pc) {
			delete(p.parts, "nic 52:54:00:00:00:01")
			p.parts["nic 52:54:00:00:00:99"] = "0000:00:03.0"
			p.o.Uptime = time.Hour
		}, Fatal, "nic 52:54:00:00:00:99", Added},
		{"another disk", func(p *pc) { delete(p.parts, "block SER-A"); p.parts["block SER-B"] = "1000" }, Fatal, "block SER-B", Added},
		{"another board", func(p *pc) { p.parts["dmi board_serial"] = "B2" }, Fatal, "dmi board_serial", Changed},
		{"a PCI function more", func(p *pc) { p.parts["pci 0000:00:09.0"] = "0x8086" }, Fatal, "pci 0000:00:09.0", Added},
		{"a USB device more", func(p *pc) { p.parts["usb 1-2"] = "stick" }, Fatal, "usb 1-2", Added},
		{"a Thunderbolt device more", func(p *pc) { p.parts["thunderbolt 0-1"] = "dock" }, Fatal, "thunderbolt 0-1", Added},
		{"a PCI function less", func(p *pc) { delete(p.parts, "pci 0000:00:03.0") }, Fatal, "pci 0000:00:03.0", Removed},
		{"a part of a class that nobody knows", func(p *pc) { p.parts["new thing"] = "1" }, Fatal, "new thing", Added},
		{"another BIOS version", func(p *pc) { p.parts["dmi bios_version"] = "2.0" }, Review, "dmi bios_version", Changed},
		{"other microcode", func(p *pc) { p.parts["cpu microcode"] = "0x11" }, Review, "cpu microcode", Changed},
		{"another DIMM between boots", func(p *pc) { p.parts["dimm 0"] = "65536 MiB" }, Review, "dimm 0", Changed},
		{"more memory between boots", func(p *pc) { p.parts["memory kib"] = "2000000" }, Review, "memory kib", Changed},
		{"another DSDT", func(p *pc) { p.parts["acpi DSDT"] = "dd" }, Review, "acpi DSDT", Changed},
		{"a TSC of another rate", func(p *pc) { p.parts["tsc khz"] = "2000000" }, Review, "tsc khz", Changed},
		{"an asset tag", func(p *pc) { p.parts["dmi chassis_asset_tag"] = "T2" }, 0, "", ""},
		{"a little less memory", func(p *pc) { p.parts["memory kib"] = "990000" }, 0, "", ""},
		{"a TSC that is calibrated anew", func(p *pc) { p.parts["tsc khz"] = "3001000" }, 0, "", ""},
		{"a disk that has not come up yet", func(p *pc) { delete(p.parts, "block SER-A") }, 0, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPC(t)
			p.enrol()
			p.boot(9)
			root := p.record().Root
			c.do(p)
			r := p.observe()
			if r.Worst() != c.want {
				t.Fatalf("%v, want %v: %v", r.Worst(), c.want, r.Changes)
			}
			if c.want != 0 && !slices.ContainsFunc(r.Changes, func(x Change) bool { return x.Class+" "+x.Slot == c.part && x.Kind == c.which }) {
				t.Errorf("%s %s is not among %v", c.part, c.which, r.Changes)
			}
			if (r.Waits != "") != (c.want != 0) || (p.pending() != nil) != (c.want != 0) {
				t.Errorf("what waits: %q, %+v", r.Waits, p.pending())
			}
			if p.record().Root != root {
				t.Error("the fingerprint has changed without an approval")
			}
		})
	}
}

// Whatever changes in a running machine is fatal, also what may differ between
// boots, and also when it is put back.
func TestAttack_ChangeWithinTheSession(t *testing.T) {
	for _, part := range []string{"dimm 0", "dmi bios_version", "cpu microcode", "acpi DSDT", "memmap firmware", "memory kib"} {
		p := newPC(t)
		p.enrol()
		p.boot(9)
		p.observe()
		was := p.parts[part]
		p.parts[part] = "7"
		if r := p.observe(); r.Worst() != Fatal || !r.Changes[0].Within {
			t.Errorf("%s: %v", part, r.Changes)
		}
		p.boot(10)
		p.observe() // the drift is there when the session begins
		p.parts[part] = was
		if r := p.observe(); r.Worst() != Fatal {
			t.Errorf("%s is put back: %v", part, r.Changes)
		}
	}
}

func TestEnrolment_ThreeBoots(t *testing.T) {
	p := newPC(t)
	if r := p.observe(); r.Boots != 1 || len(r.Changes) > 0 {
		t.Fatalf("%+v", r)
	}
	p.boot(2)
	p.parts["acpi FACP"] = "other" // holds an address that differs from boot to boot
	p.parts["acpi BGRT"] = "new"
	r := p.observe()
	if r.Boots != 2 || len(r.Unstable) != 2 || len(r.Changes) > 0 {
		t.Fatalf("%+v", r)
	}
	if again := p.observe(); again.Boots != 2 || len(again.Unstable)+len(again.Changes) > 0 {
		t.Errorf("the same boot counts once: %+v", again)
	}
	p.boot(3)
	p.parts["acpi FACP"] = "a third"
	if r := p.observe(); r.Boots != 3 || len(r.Unstable)+len(r.Changes) > 0 || !p.record().Complete() {
		t.Fatalf("%+v", r)
	}
	p.boot(4)
	p.parts["acpi FACP"] = "a fourth"
	delete(p.parts, "acpi BGRT")
	if r := p.observe(); len(r.Changes) > 0 {
		t.Errorf("an unstable part: %v", r.Changes)
	}
	p.parts["acpi DSDT"] = "changed"
	p.boot(5)
	if r := p.observe(); r.Worst() != Review || len(r.Unstable) > 0 {
		t.Errorf("nothing is learned after the third boot: %+v", r)
	}
}

// What is fatal later is fatal in the enrolling boots, and they do not count.
func TestAttack_EnrollingBootsTeachNoParts(t *testing.T) {
	p := newPC(t)
	p.boot(2)
	p.parts["pci 0000:00:09.0"] = "0x8086"
	p.parts["acpi FACP"] = "other"
	r := p.observe()
	if r.Worst() != Fatal || r.Boots != 1 || len(r.Learned)+len(r.Unstable) > 0 {
		t.Errorf("%+v", r)
	}
	if rec := p.record(); slices.ContainsFunc(rec.Parts, func(p Part) bool { return p.Unstable || p.Slot == "0000:00:09.0" }) {
		t.Errorf("%+v", rec.Parts)
	}
	p.boot(3)
	delete(p.parts, "pci 0000:00:09.0")
	p.parts["dimm 0"] = "another"
	if r := p.observe(); r.Worst() != Review || len(r.Unstable) > 0 {
		t.Errorf("a DIMM is for review, never unstable: %+v", r)
	}
}

// Another kernel may find other parts: that is for review, once.
func TestNewImage_DriversFindOtherParts(t *testing.T) {
	p := newPC(t)
	p.enrol()
	p.boot(9)
	p.o.Image, p.o.Uptime = "image2", time.Hour
	p.parts["block SER-B"] = "2000"
	if r := p.observe(); r.Worst() != Review {
		t.Errorf("%v", r.Changes)
	}
	p.boot(11)
	p.o.Image = "image3"
	delete(p.parts, "block SER-B")
	p.observe() // before the drivers are there
	p.parts["block SER-B"] = "2000"
	if r := p.observe(); r.Worst() != Review {
		t.Errorf("a disk that the new drivers find late: %v", r.Changes)
	}
	p.boot(9)
	p.o.Image, p.o.Uptime = "image2", time.Hour
	p.parts["nic 52:54:00:00:00:99"] = "0000:00:09.0"
	if r := p.observe(); r.Worst() != Fatal {
		t.Errorf("a network card is fatal with any image: %v", r.Changes)
	}
	delete(p.parts, "nic 52:54:00:00:00:99")
	delete(p.parts, "block SER-B")
	p.observe() // nothing differs: the image is known from now on
	p.boot(10)
	p.parts["block SER-B"] = "2000"
	if r := p.observe(); r.Worst() != Fatal {
		t.Errorf("%v", r.Changes)
	}
}

func TestApproval_OfADrift(t *testing.T) {
	key, keys := operator(t)
	p := newPC(t)
	p.enrol()
	before := p.record()
	p.boot(9)
	p.parts["block SER-B"] = "2000"
	p.parts["tsc khz"] = "2000000"
	p.observe()
	p.parts["tsc khz"] = "2000123" // measured anew: what waits stays the same
	envelope := p.sign(key)
	p.observe()
	after, a, err := Approve(p.refs, mac, envelope, keys)
	if err != nil {
		t.Fatal(err)
	}
	if a.Of != OfDrift || len(a.Changes) != 2 || a.Changes[0] != (ApprovedChange{Added, "block", "SER-B", Fatal}) || bytes.Contains(envelope, []byte("2000000")) {
		t.Errorf("%+v", a)
	}
	if after.Generation != before.Generation+1 || after.ApprovedBy != manifest.KeyID(keys[0]) || after.Root == before.Root {
		t.Errorf("%+v", after)
	}
	if r := p.observe(); len(r.Changes) > 0 || p.pending() != nil {
		t.Errorf("after the approval: %v", r.Changes)
	}
	if kept, err := p.refs.Get(KindApproval, Key(mac)+".2.drift"); err != nil || !bytes.Equal(kept, envelope) {
		t.Errorf("the envelope is not kept: %v", err)
	}
	if _, _, err := Approve(p.refs, mac, envelope, keys); reasonOf(err) != ReasonApprovalStale {
		t.Errorf("the same approval again: %v", err)
	}
	p.boot(10)
	delete(p.parts, "block SER-B")
	p.o.Uptime = time.Hour
	if r := p.observe(); r.Worst() != Fatal {
		t.Errorf("the old machine after the approval: %v", r.Changes)
	}
}

// A drift may be approved before the disks are there: they still belong to it.
func TestApproval_BeforeLatePartsHaveComeUp(t *testing.T) {
	key, keys := operator(t)
	p := newPC(t)
	p.enrol()
	p.boot(9)
	delete(p.parts, "block SER-A")
	p.parts["pci 0000:00:09.0"] = "0x8086"
	p.observe()
	if _, _, err := Approve(p.refs, mac, p.sign(key), keys); err != nil {
		t.Fatal(err)
	}
	p.parts["block SER-A"] = "1000"
	if r := p.observe(); len(r.Changes) > 0 {
		t.Errorf("%v", r.Changes)
	}
}

func TestApproval_OfTheEnrolment(t *testing.T) {
	key, keys := operator(t)
	p := newPC(t)
	if _, _, err := Approve(p.refs, mac, p.sign(key), keys); reasonOf(err) != ReasonApprovalEnrolling {
		t.Errorf("before the third boot: %v", err)
	}
	p.enrol()
	r, _, err := Approve(p.refs, mac, p.sign(key), keys)
	if err != nil || r.ApprovedBy == "" || p.record().ApprovedBy != r.ApprovedBy {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, _, err := Approve(p.refs, mac, p.sign(key), keys); reasonOf(err) != ReasonApprovalNothing {
		t.Errorf("a second time: %v", err)
	}
}

func TestAttack_ApprovalsThatAreRefused(t *testing.T) {
	key, keys := operator(t)
	stranger, _ := operator(t)
	p := newPC(t)
	p.enrol()
	p.boot(9)
	p.parts["pci 0000:00:09.0"] = "0x8086"
	p.observe()
	good := func() *Approval { return NewApproval(p.record(), p.pending(), time.Now(), "") }
	signed := func(a *Approval, by ed25519.PrivateKey) []byte {
		b, err := a.Sign(by)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	edit := func(f func(*Approval)) []byte {
		a := good()
		f(a)
		return signed(a, key)
	}
	flipped := signed(good(), key)
	flipped[bytes.Index(flipped, []byte(`"sig":"`))+9] ^= 1
	payload, err := good().encode()
	if err != nil {
		t.Fatal(err)
	}
	otherKind, err := manifest.SignPayload("application/vnd.portcullis.manifest+json", payload, key)
	if err != nil {
		t.Fatal(err)
	}
	loose, err := manifest.SignPayload(PayloadType, append([]byte(" "), payload...), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, reason string
		envelope     []byte
		keys         []ed25519.PublicKey
	}{
		{"no operator is configured", ReasonApprovalKeys, signed(good(), key), nil},
		{"signed by a stranger", ReasonApprovalSignature, signed(good(), stranger), keys},
		{"a flipped bit", "", flipped, keys},
		{"an envelope of another kind", ReasonApprovalMalformed, otherKind, keys},
		{"another encoding", ReasonApprovalMalformed, loose, keys},
		{"of another machine", ReasonApprovalMachine, edit(func(a *Approval) { a.Machine = "52:54:00:00:00:02" }), keys},
		{"of another fingerprint before", ReasonApprovalStale, edit(func(a *Approval) { a.Previous = a.Root }), keys},
		{"of a later generation", ReasonApprovalStale, edit(func(a *Approval) { a.Generation++ }), keys},
		{"of something else than waits", ReasonApprovalRoot, edit(func(a *Approval) { a.Root = a.Previous }), keys},
		{"too long", ReasonApprovalMalformed, make([]byte, MaxApproval+1), keys},
	} {
		root := p.record().Root
		_, _, err := Approve(p.refs, mac, c.envelope, c.keys)
		if reason := reasonOf(err); err == nil || reason == "" || c.reason != "" && reason != c.reason {
			t.Errorf("%s: %v", c.name, err)
		}
		if p.record().Root != root || p.pending() == nil {
			t.Fatalf("%s: it was carried out", c.name)
		}
	}
	// What waits changes between the operator's look and the approval.
	looked := signed(good(), key)
	p.parts["pci 0000:00:0a.0"] = "0x8087"
	p.observe()
	if _, _, err := Approve(p.refs, mac, looked, keys); reasonOf(err) != ReasonApprovalRoot {
		t.Errorf("another drift than the operator saw: %v", err)
	}
	delete(p.parts, "pci 0000:00:09.0")
	delete(p.parts, "pci 0000:00:0a.0")
	p.o.Uptime = time.Hour
	p.boot(10)
	p.o.Uptime = time.Hour
	p.observe()
	if _, _, err := Approve(p.refs, mac, looked, keys); reasonOf(err) != ReasonApprovalNothing {
		t.Errorf("after the drift has gone: %v", err)
	}
}

// A leaf can be shown to a verifier who knows the root; one bit of anything
// breaks the proof, and the salt of one leaf does not help with another.
func TestOpening(t *testing.T) {
	p := newPC(t)
	r := p.record()
	root := [32]byte(must(hex.DecodeString(r.Root)))
	salts := map[string]bool{}
	for _, part := range stable(r.Parts) {
		o, err := r.Open(part.Class, part.Slot)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Verify(root); err != nil || o.Value != part.Value {
			t.Errorf("%s: %v", part, err)
		}
		if salts[o.Salt] {
			t.Error("two leaves have one salt")
		}
		salts[o.Salt] = true
		for name, f := range map[string]func(*Opening){
			"value": func(o *Opening) { o.Value += "x" }, "class": func(o *Opening) { o.Class, o.Slot = "c", o.Slot+"x" },
			"index": func(o *Opening) { o.Index = (o.Index + 1) % o.Size }, "size": func(o *Opening) { o.Size += 3 },
			"proof": func(o *Opening) { o.Proof = o.Proof[1:] }, "schema": func(o *Opening) { o.Schema = 2 },
			"salt": func(o *Opening) { o.Salt = "AAAA" + o.Salt[4:] }, "root": func(o *Opening) { o.Root = strings.Repeat("0", 64) },
			"hash": func(o *Opening) { o.Proof[0] = strings.Repeat("0", 64) },
		} {
			bad := *o
			bad.Proof = slices.Clone(o.Proof)
			f(&bad)
			if err := bad.Verify(root); reasonOf(err) != ReasonOpening {
				t.Errorf("%s: with another %s: %v", part, name, err)
			}
		}
	}
	if _, err := r.Open("pci", "none"); reasonOf(err) != ReasonPart {
		t.Errorf("a part that is not there: %v", err)
	}
	if _, err := r.Open("dmi", "chassis_asset_tag"); reasonOf(err) != ReasonPart {
		t.Errorf("an ignored part has a leaf: %v", err)
	}
}

// The class and slot are framed: what moves from one into the other is another leaf.
func TestLeaf_Framing(t *testing.T) {
	salt := make([]byte, SaltSize)
	if leaf(salt, "ab", "c", "v") == leaf(salt, "a", "bc", "v") || leaf(salt, "a", "b", "v") == leaf(salt, "a", "b", "w") {
		t.Error("two parts have one leaf")
	}
	other := bytes.Repeat([]byte{1}, SaltSize)
	if leaf(salt, "a", "b", "v") == leaf(other, "a", "b", "v") {
		t.Error("the salt does not matter")
	}
}

func TestRecord_EditedByHandIsSeen(t *testing.T) {
	p := newPC(t)
	r := p.record()
	r.Parts[3].Value += "x"
	if reasonOf(r.Check()) != ReasonRecord {
		t.Error("a changed value passes")
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"cut":          b[:len(b)-1],
		"another key":  bytes.Replace(b, []byte(`"schema"`), []byte(`"scheme"`), 1),
		"of later":     bytes.Replace(b, []byte(`"schema":1`), []byte(`"schema":2`), 1),
		"no machine":   bytes.Replace(b, []byte(mac), nil, 1),
		"other PC":     bytes.Replace(b, []byte(mac), []byte("52:54:00:00:00:02"), 1),
		"bytes behind": append(bytes.Clone(b), '1'),
	} {
		p.refs[KindRecord+"/"+Key(mac)] = bad
		if _, err := Load(p.refs, mac); reasonOf(err) != ReasonRecord {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Enrol(p.refs, p.seen(), rand.Reader); err == nil {
		t.Error("a broken record is replaced by what the PC says")
	}
}

// Two parts at one place are told apart, in whatever order they come.
func TestParts_TwoAtOnePlace(t *testing.T) {
	d := &protocol.HwData{MemoryKiB: 5, Components: []protocol.Component{{Class: "nic", Slot: "m", Value: "b"}, {Class: "nic", Slot: "m", Value: "a"}}}
	one := Parts(d)
	slices.Reverse(d.Components)
	if two := Parts(d); !slices.Equal(one, two) || len(one) != 3 || one[2].Slot != "m #2" {
		t.Errorf("%v, %v", one, two)
	}
}

// However the parts of an honest machine come up, in 200 lives of boots with
// jitter, late parts and unstable tables, nothing is a drift.
func TestHonestMachine_NoDrift(t *testing.T) {
	random := mathrand.New(mathrand.NewPCG(4, 2))
	for life := range 200 {
		p := newPC(t)
		all := p.parts
		for boot := 1; boot <= 8; boot++ {
			p.boot(boot)
			all["memory kib"] = fmt.Sprint(1000000 - random.IntN(20000))
			all["memmap firmware"] = fmt.Sprint(random.IntN(1000)) // differs at each boot
			up := time.Duration(20+random.IntN(100)) * time.Second
			lateAt := up
			if boot > 1 {
				lateAt += time.Duration(random.IntN(60)) * time.Second
			}
			for range 4 {
				all["tsc khz"] = fmt.Sprint(3000000 + random.IntN(60000))
				p.o.Uptime = up
				p.parts = map[string]string{}
				for k, v := range all {
					class, _, _ := strings.Cut(k, " ")
					if !late[class] || up >= lateAt {
						p.parts[k] = v
					}
				}
				if boot == 1 {
					p.parts["memmap firmware"] = "cc"
					p.parts["memory kib"] = "1000000"
				}
				if r := p.observe(); len(r.Changes) > 0 {
					t.Fatalf("life %d, boot %d, up %v: %v", life, boot, up, r.Changes)
				}
				up += time.Duration(random.IntN(60)) * time.Second
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func FuzzRecord(f *testing.F) {
	p := newPC(f)
	f.Add(p.refs[KindRecord+"/"+Key(mac)])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		if _, _, err := build(r.Salt, r.Parts); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzPending(f *testing.F) {
	p := newPC(f)
	p.boot(2)
	p.parts["pci 0000:00:09.0"] = "0x8086"
	p.observe()
	f.Add(p.refs[KindPending+"/"+Key(mac)])
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := decodePending(b); err == nil && w.Record != nil && w.Record.Root == "" {
			t.Fatalf("%+v", w)
		}
	})
}

func FuzzOpening(f *testing.F) {
	p := newPC(f)
	r := p.record()
	root := [32]byte(must(hex.DecodeString(r.Root)))
	good, err := r.Open("dmi", "board_serial")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(must(json.Marshal(good)))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOpening(b)
		if err != nil {
			return
		}
		if o.Verify(root) == nil && o.Value != r.value(o.Class, o.Slot) {
			t.Fatalf("it proves what is not there: %+v", o)
		}
	})
}

func (r *Record) value(class, slot string) string {
	for _, p := range r.Parts {
		if p.Class == class && p.Slot == slot {
			return p.Value
		}
	}
	return ""
}

func FuzzApproval(f *testing.F) {
	p := newPC(f)
	f.Add(must(NewApproval(p.record(), nil, time.Unix(1700000000, 0), "note").encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseApproval(b)
		if err != nil {
			return
		}
		if again, err := a.encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q is read as %q", b, again)
		}
	})
}
