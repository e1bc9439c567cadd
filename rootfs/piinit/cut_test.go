package piinit

import (
	"bytes"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"filippo.io/age"

	"portcullis/hardware/escrow"
	"portcullis/images/card"
	"portcullis/images/luks2"
)

// cut is a card and a chip as a power cut left them.
type cut struct {
	name string
	m    *medium
	chip chipState
}

// cuts returns what a power cut can leave of a boot that began with before: every
// prefix of its writes, the next write torn in a few ways, and any subset of what
// was written since the last sync, because a card may turn the order round. Where
// only is not negative, that one of them is returned.
func cuts(before *medium, chip chipState, events []event, r *rand.Rand, only int) []cut {
	var out []cut
	m := before.clone()
	synced := before.clone()
	var since []event // last sync
	state := chip
	points := 0
	add := func(name string, n int, leave func() *medium) {
		if points++; only < 0 || only == points-1 {
			out = append(out, cut{name + " " + strconv.Itoa(n), leave(), state})
		}
	}
	add("before write", 0, m.clone)
	for i, e := range events {
		state = e.chip
		if e.data == nil {
			synced, since = nil, nil
			continue
		}
		if synced == nil {
			synced = m.clone()
		}
		for _, torn := range tears(len(e.data), r) {
			add("torn write", i, func() *medium {
				half := m.clone()
				half.WriteAt(e.data[:torn], e.off)
				return half
			})
		}
		m.WriteAt(e.data, e.off)
		since = append(since, e)
		add("after write", i, m.clone)
		if len(since) > 1 {
			add("any order, write", i, func() *medium {
				mixed := synced.clone()
				for _, s := range since {
					if r.IntN(2) == 0 {
						mixed.WriteAt(s.data, s.off)
					}
				}
				return mixed
			})
		}
	}
	return out
}

// one returns a random cut of a boot.
func one(before *medium, chip chipState, events []event, r *rand.Rand) cut {
	for {
		if c := cuts(before, chip, events, r, r.IntN(4*len(events)+1)); len(c) == 1 {
			return c[0]
		}
	}
}

// tears are lengths at which a write of n bytes may have stopped: at the edge of a
// sector, and inside one, which a card should not do and some do.
func tears(n int, r *rand.Rand) []int {
	if n <= card.SectorSize {
		return []int{r.IntN(n)}
	}
	return []int{r.IntN(n/card.SectorSize) * card.SectorSize, r.IntN(n)}
}

// committed tells whether a card holds a finished volume, by its UUID.
func committed(p *pi) string {
	d := p.part(card.PartCrypt)
	h, _, err := luks2.Read(d, d.Size())
	if err != nil || unfinished(h) {
		return ""
	}
	return h.UUID()
}

// TestPowerCutsDuringFirstBoot: a cut at every write of a first boot, torn or whole
// or out of order, ends in a booting Pi, and what was committed once is never made
// anew. So with a TPM, with a Zymbit module, and with both.
func TestPowerCutsDuringFirstBoot(t *testing.T) {
	for i, root := range []string{card.RootTPM2, card.RootZymbit, card.RootCombined} {
		t.Run(root, func(t *testing.T) { cutFirstBoot(t, root, rand.New(rand.NewPCG(uint64(i+1), 2))) })
	}
}

func cutFirstBoot(t *testing.T, root string, r *rand.Rand) {
	b := newSigner(t).build(t, 3)
	b.info.Root = root
	id, seed := operator(t)
	first := newPi(t, b, seed)
	memory := first.chip.state
	if root != card.RootTPM2 {
		first.zymkey = module(t)
	}
	if root == card.RootZymbit {
		first.chip = nil
	}
	before := first.m.clone()
	// after is the same Pi with what a cut left of it.
	after := func(c cut) *pi {
		p := &pi{t: t, built: b, m: c.m, zymkey: first.zymkey}
		if first.chip != nil {
			p.chip = (&chip{}).reboot(c.chip)
		}
		return p
	}
	if h := first.must().Handover; h.Backend != root {
		t.Fatalf("backend %s instead of %s", h.Backend, root)
	}
	all := cuts(before, memory, first.rec.events, r, -1)
	if len(all) < 100 {
		t.Fatalf("%d points are less than 100", len(all))
	}
	finished := 0
	for _, c := range all {
		p := after(c)
		had := committed(p)
		if had != "" {
			finished++
		}
		survives(t, p, c, id, had)
		if t.Failed() {
			t.Fatalf("%s of %d writes", c.name, len(first.rec.events))
		}
		if got := enrolledBackend(t, p); got != root {
			t.Fatalf("%s: the key is kept by %s", c.name, got)
		}
	}
	t.Logf("%d cuts of %d writes, %d of them behind the commit", len(all), len(first.rec.events), finished)
	if finished == 0 || finished == len(all) {
		t.Errorf("%d of %d cuts are behind the commit", finished, len(all))
	}
}

// survives boots what a cut left, twice, and makes sure that nobody has lost a key.
func survives(t *testing.T, p *pi, c cut, id *age.X25519Identity, had string) {
	t.Helper()
	res, err := p.boot()
	if err != nil {
		t.Errorf("%s: no boot: %v\n%s", c.name, err, p.people.text())
		return
	}
	if res.Handover.ReEnrolled {
		t.Errorf("%s: a cut is taken for a card that was wiped", c.name)
	}
	uuid := p.header().UUID()
	if had != "" && (uuid != had || res.Handover.FirstBoot) {
		t.Errorf("%s: volume %s was committed, and was made anew as %s", c.name, had, uuid)
	}
	if had == "" && !res.Handover.FirstBoot {
		t.Errorf("%s: an unfinished volume was taken for a finished one", c.name)
	}
	keyKept(t, p, id)
	if res, err = p.boot(); err != nil || res.Handover.FirstBoot || p.header().UUID() != uuid {
		t.Errorf("%s: second boot: %+v, %v\n%s", c.name, res, err, p.people.text())
	}
}

// keyKept opens the volume with what the operator alone can take out of the escrow.
func keyKept(t *testing.T, p *pi, id *age.X25519Identity) {
	t.Helper()
	file, err := p.conf().Escrow()
	if err != nil || file == nil {
		t.Errorf("escrow: %v", err)
		return
	}
	who, err := escrow.ParseIdentity(strings.NewReader(id.String()))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := escrow.Decrypt(who, file)
	if err != nil {
		t.Errorf("escrow: %v", err)
		return
	}
	h := p.header()
	if rec.Volume != h.UUID() {
		t.Errorf("the escrow is for volume %s, the card has %s", rec.Volume, h.UUID())
	}
	key, _, err := h.Unlock(p.part(card.PartCrypt), rec.Key.Passphrase())
	if err != nil {
		t.Errorf("the escrowed recovery key: %v", err)
	}
	clear(key)
}

// TestPowerCutsDuringPowerCuts: the boot after a cut is cut as well, three times over.
func TestPowerCutsDuringPowerCuts(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	b := newSigner(t).build(t, 3)
	id, seed := operator(t)
	for round := range 25 {
		p := newPi(t, b, seed)
		var c cut
		for range 3 {
			before, memory := p.m.clone(), p.chip.state
			if _, err := p.boot(); err != nil {
				t.Fatalf("round %d: %v\n%s", round, err, p.people.text())
			}
			c = one(before, memory, p.rec.events, r)
			p = &pi{t: t, built: b, m: c.m, chip: (&chip{}).reboot(c.chip)}
		}
		survives(t, p, c, id, committed(p))
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

// TestPowerCutsDuringRepairAndTrial: a boot that repairs the header and the
// partition table and counts an attempt can be cut at every write.
func TestPowerCutsDuringRepairAndTrial(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	s := newSigner(t)
	b := s.build(t, 3)
	id, seed := operator(t)
	p := newPi(t, b, seed)
	p.must()
	next := s.build(t, 4)
	stage(t, p, next)
	uuid := p.header().UUID()
	p.part(card.PartCrypt).WriteAt(bytes.Repeat([]byte{0xff}, luks2.HeaderSize), 0)
	p.m.WriteAt(bytes.Repeat([]byte{0xff}, 512), 512) // primary GPT header
	before, memory := p.m.clone(), p.chip.state
	p.built = next
	if res := p.must(); !res.Handover.HeaderRepaired || res.Handover.Attempt != 1 {
		t.Fatalf("%+v", res.Handover)
	}
	all := cuts(before, memory, p.rec.events, r, -1)
	for _, c := range all {
		p := &pi{t: t, built: next, m: c.m, chip: (&chip{}).reboot(c.chip)}
		res, err := p.boot()
		if err != nil || res.Handover.Attempt < 1 || res.Handover.Attempt > 2 || p.header().UUID() != uuid {
			t.Fatalf("%s: %+v, %v\n%s", c.name, res, err, p.people.text())
		}
		keyKept(t, p, id)
	}
	t.Logf("%d cuts", len(all))
}

// TestPowerCutsBetweenRecordAndCommit: the enrolment's record says that both headers
// were whole once. A boot that starts over behind it, and is cut while it takes the old
// header away, must not look like a finished volume that has lost both.
func TestPowerCutsBetweenRecordAndCommit(t *testing.T) {
	b := newSigner(t).build(t, 3)
	id, seed := operator(t)
	p := newPi(t, b, seed)
	m, memory := p.m.clone(), p.chip.state
	p.must()
	at := -1
	for i, e := range p.rec.events {
		m.WriteAt(e.data, e.off)
		if memory = e.chip; bytes.Contains(e.data, []byte(card.EnrolmentSchema)) {
			at = i
			break
		}
	}
	if at < 0 {
		t.Fatal("the record is not written")
	}
	again := &pi{t: t, built: b, m: m.clone(), chip: (&chip{}).reboot(memory)}
	again.must()
	crypt := again.part(card.PartCrypt).off
	for _, e := range again.rec.events {
		if e.off == crypt && len(e.data) > 2*luks2.HeaderSize {
			for torn := luks2.HeaderSize / 4; torn <= 3*luks2.HeaderSize; torn += luks2.HeaderSize / 4 {
				half := m.clone()
				half.WriteAt(e.data[:torn], e.off)
				next := &pi{t: t, built: b, m: half, chip: (&chip{}).reboot(e.chip)}
				survives(t, next, cut{name: "torn at " + strconv.Itoa(torn)}, id, "")
			}
			return
		}
		m.WriteAt(e.data, e.off)
	}
	t.Fatal("the old header is not taken away")
}
