package expect_test

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

// none is a question to which there must be no finding.
func (p *tpmPC) none(op string) {
	p.t.Helper()
	if f := p.judge(op); len(f) > 0 {
		p.t.Fatalf("%s: %+v", op, f)
	}
}

// The list grows all the time, and each op sees it at a moment of its own: whichever is
// ahead, an honest PC is not accused.
func TestIma_ProvenListOfAnHonestPC(t *testing.T) {
	p := enrolledTpmPC(t)
	for range 3 {
		p.measure("/usr/bin/dockerd")
		p.none(protocol.OpIma) // ahead of the chip
		p.measure("/usr/bin/dockerd")
		p.good(protocol.TierTPM, false)
		p.good(protocol.TierTPM, false)
		p.measure("/usr/bin/dockerd")
		p.good(protocol.TierTPM, false)
		p.measure("/usr/bin/dockerd")
		p.none(protocol.OpIma) // behind it, and now ahead
		p.none(protocol.OpIma)
		p.good(protocol.TierTPM, false)
	}
	p.session(testSession, false) // attestd was started anew: all of the list once more
	p.none(protocol.OpIma)
	p.good(protocol.TierTPM, false)
	p.session(testSession, false)
	p.good(protocol.TierTPM, false)
	p.none(protocol.OpIma)
}

// The kernel shows an entry a moment before the register has it: one answer of the chip
// may lack what op ima was told just before.
func TestIma_EntryThatTheRegisterHasNotYet(t *testing.T) {
	p := enrolledTpmPC(t)
	p.none(protocol.OpIma)
	p.good(protocol.TierTPM, false)
	data := p.measured("/usr/bin/dockerd", p.files["/usr/bin/dockerd"]) // shown, and not extended yet
	p.none(protocol.OpIma)
	p.good(protocol.TierTPM, false)
	p.extended(data)
	p.good(protocol.TierTPM, false)
	p.none(protocol.OpIma)
}

// An attacker with the kernel shows the chip's op the list that the register demands, and
// op ima another one, without what must not be seen.
func TestAttackImaAnotherListThanTheChips(t *testing.T) {
	kit := func(p *tpmPC) (with, without string) {
		without = p.special[imaList]
		p.extended(p.measured("/tmp/kit", []byte("evil")))
		return p.special[imaList], without
	}
	invent := func(p *tpmPC, list string, n int) string {
		defer func(all string) { p.special[imaList] = all }(p.special[imaList])
		p.special[imaList] = list
		for range n {
			p.measured("/usr/bin/dockerd", p.files["/usr/bin/dockerd"])
		}
		return p.special[imaList]
	}
	show := func(p *tpmPC, list, op string) []protocol.Finding {
		defer func(all string) { p.special[imaList] = all }(p.special[imaList])
		p.special[imaList] = list
		return p.judge(op)
	}
	for _, row := range []struct {
		name, op, detail string
		attack           func(p *tpmPC) []protocol.Finding
	}{
		{"edited after it was proven", protocol.OpIma, "are not those of register 10", func(p *tpmPC) []protocol.Finding {
			_, without := kit(p)
			p.good(protocol.TierTPM, false)
			return show(p, invent(p, without, 1), protocol.OpIma)
		}},
		{"edited before it was proven", protocol.OpTpm, "are not those of register 10", func(p *tpmPC) []protocol.Finding {
			_, without := kit(p)
			if f := show(p, invent(p, without, 1), protocol.OpIma); len(f) > 0 {
				p.t.Fatalf("%+v", f)
			}
			return p.judge(protocol.OpTpm)
		}},
		{"cut", protocol.OpIma, "the chip has proven 3", func(p *tpmPC) []protocol.Finding {
			_, without := kit(p)
			p.good(protocol.TierTPM, false)
			return show(p, without, protocol.OpIma)
		}},
		{"told by halves", protocol.OpIma, "3 measurements of 4, the chip has proven 4", func(p *tpmPC) []protocol.Finding {
			p.measure("/usr/bin/dockerd")
			kit(p)
			p.good(protocol.TierTPM, false)
			in := p.input(protocol.OpIma, false)
			var d protocol.ImaData
			p.check(json.Unmarshal(in.Output.Data, &d))
			raw, err := hex.DecodeString(d.HeadFrom)
			p.check(err)
			head := protocol.ImaNext([32]byte(raw), d.Entries[0])
			d.Entries, d.Head = d.Entries[:1], hex.EncodeToString(head[:]) // and d.Total tells that there is one more
			b, err := json.Marshal(d)
			p.check(err)
			in.Output = protocol.Output{Data: b, Digest: in.Key.Digest(protocol.OpIma, in.Params, b)}
			return p.twins[protocol.OpIma].Judge(in)
		}},
		{"longer than any list of this PC", protocol.OpTpm, "op ima has told of 502 measurements", func(p *tpmPC) []protocol.Finding {
			if f := show(p, invent(p, p.special[imaList], 500), protocol.OpIma); len(f) > 0 {
				p.t.Fatalf("%+v", f)
			}
			kit(p)
			p.good(protocol.TierTPM, false)
			return p.judge(protocol.OpTpm)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := enrolledTpmPC(t)
			p.none(protocol.OpIma)
			found := row.attack(p)
			p.wants(found, protocol.Fatal, expect.ReasonImaProof, row.detail)
			if len(found) != 1 || found[0].Probe != row.op || strings.Contains(found[0].Detail, "kit") {
				t.Errorf("%+v", found)
			}
			if tier, _ := p.settle(); row.op == protocol.OpTpm && tier != protocol.TierSoftware {
				t.Errorf("tier %s", tier)
			}
		})
	}
}

// An agent holds entries back while it reads the images of containers, which the chip does
// not wait for; one that holds them back for ever is found.
func TestIma_HeldBack(t *testing.T) {
	p := enrolledTpmPC(t)
	p.none(protocol.OpIma)
	var now time.Duration
	expect.SetRunning(p.twins[protocol.OpIma], func() time.Duration { return now })
	held := func() []protocol.Finding {
		p.measure("/usr/bin/dockerd")
		p.good(protocol.TierTPM, false)
		in := p.input(protocol.OpIma, false)
		var d protocol.ImaData
		p.check(json.Unmarshal(in.Output.Data, &d))
		d.Entries, d.Head = nil, d.HeadFrom
		b, err := json.Marshal(d)
		p.check(err)
		in.Output = protocol.Output{Data: b, Digest: in.Key.Digest(protocol.OpIma, in.Params, b)}
		return p.twins[protocol.OpIma].Judge(in)
	}
	for range 3 {
		for _, now = range []time.Duration{time.Minute, 5 * time.Minute, 12 * time.Minute} {
			if f := held(); len(f) > 0 {
				t.Fatalf("after %v: %+v", now, f)
			}
		}
		now = 12*time.Minute + time.Second
		p.wants(held(), protocol.Fatal, expect.ReasonImaHeld, "held back for more than 11m0s")
		p.none(protocol.OpIma) // told, at last
		now = 0
	}
}
