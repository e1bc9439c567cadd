package expect_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"portcullis/attestserver/eventlog/eventlogtest"
	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
	"portcullis/hardware/tpm2/tpmtest"
)

// Digests of the image as the manifest has them.
var (
	imageDigest, kernelDigest = sha256.Sum256([]byte("uki")), sha256.Sum256([]byte("linux"))
	nine, eleven              = [][32]byte{{9}, {99}}, [][32]byte{{11}, {111}}
)

// tpmPC is a machine with a chip.
type tpmPC struct {
	*machine
	chip   *tpmtest.Chip
	events []eventlogtest.Event // as firmware and kernel measure
}

func newTpmPC(t testing.TB) *tpmPC {
	t.Helper()
	p := &tpmPC{machine: newMachine(t), chip: tpmtest.Start(t), events: eventlogtest.Boot(imageDigest, kernelDigest, nine, eleven)}
	p.image.Manifest.UKI.Authenticode, p.image.Manifest.UKI.LinuxAuthenticode = hex.EncodeToString(imageDigest[:]), hex.EncodeToString(kernelDigest[:])
	p.image.Manifest.PCR = map[string]string{"9": extended(nine), "11": extended(eleven), "12": hex.EncodeToString(make([]byte, 32))}
	p.host.TPM = func() (transport.TPMCloser, error) { return p.chip.Dial(), nil }
	p.boot()
	return p
}

func extended(digests [][32]byte) string {
	var v [32]byte
	for _, d := range digests {
		v = sha256.Sum256(append(v[:], d[:]...))
	}
	return hex.EncodeToString(v[:])
}

// boot measures what events say, and starts the agent.
func (p *tpmPC) boot() {
	p.t.Helper()
	for _, e := range p.events {
		if e.Type != 3 {
			p.extend(e.PCR, e.Digest)
		}
	}
	p.special["tpm0/binary_bios_measurements"] = string(eventlogtest.Encode(p.events...))
	p.special[imaList] = ""
	p.measure("boot_aggregate")
	p.measure("/usr/bin/dockerd")
	p.startAgent()
}

func (p *tpmPC) extend(pcr int, digest [32]byte) {
	p.t.Helper()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(p.chip.Dial())
	p.check(err)
}

// measure is what IMA does with one file.
func (p *tpmPC) measure(path string) {
	p.t.Helper()
	p.extended(p.measured(path, p.files[path]))
}

// extended is what IMA does with an entry's data.
func (p *tpmPC) extended(data []byte) { p.t.Helper(); p.extend(10, sha256.Sum256(data)) }

// session begins a new one; reset starts the chip anew, as a boot does.
func (p *tpmPC) session(id string, reset bool) {
	p.t.Helper()
	p.state.Session, p.state.Notes, p.state.Kept = id, map[string][]byte{}, nil
	if reset {
		p.chip.Reboot(p.t)
		p.boot()
	}
}

const secondSession = "bbbbbbbbbbbbbbbbbbbbbbbbbb"

func (p *tpmPC) settle() (protocol.Tier, bool) {
	p.t.Helper()
	tier, taken, err := p.twins[protocol.OpTpm].(protocol.Rooted).Settle(p.state, p.refs)
	p.check(err)
	return tier, taken
}

// good asks once: there must be no finding, and this tier.
func (p *tpmPC) good(want protocol.Tier, taken bool) {
	p.t.Helper()
	if f := p.judge(protocol.OpTpm); len(f) > 0 {
		p.t.Fatalf("%+v", f)
	}
	if tier, took := p.settle(); tier != want || took != taken {
		p.t.Fatalf("tier %s, taken %v; want %s, %v", tier, took, want, taken)
	}
}

// enrolled is a PC whose chip is known.
func enrolledTpmPC(t testing.TB) *tpmPC {
	t.Helper()
	p := newTpmPC(t)
	p.good(protocol.TierSoftware, false)
	p.good(protocol.TierTPM, true)
	return p
}

// answer asks, has the answer changed, and judges it.
func (p *tpmPC) changed(change func(*protocol.TpmData)) []protocol.Finding {
	p.t.Helper()
	in := p.input(protocol.OpTpm, false)
	var d protocol.TpmData
	p.check(json.Unmarshal(in.Output.Data, &d))
	change(&d)
	return p.twins[protocol.OpTpm].Judge(redo(p, in, d))
}

func redo(p *tpmPC, in protocol.JudgeInput, d protocol.TpmData) protocol.JudgeInput {
	p.t.Helper()
	b, err := json.Marshal(d)
	p.check(err)
	in.Output = protocol.Output{Data: b, Digest: in.Key.Digest(protocol.OpTpm, in.Params, b)}
	return in
}

func TestTpm_EnrolsWithACredentialAndComesBack(t *testing.T) {
	p := enrolledTpmPC(t)
	p.good(protocol.TierTPM, false)
	p.measure("/usr/bin/one")
	p.measure("/usr/bin/two")
	p.good(protocol.TierTPM, false)
	p.session(testSession, false) // attestd was started anew
	p.good(protocol.TierTPM, false)
	p.session(secondSession, true)
	p.good(protocol.TierTPM, false) // known: with the first answer
	if len(p.refs) != 1 {
		t.Errorf("%d references", len(p.refs))
	}
}

// restless is a chip whose machine starts a program after each quote, some times.
type restless struct {
	transport.TPMCloser
	p    *tpmPC
	left *int
}

func (r restless) Send(command []byte) ([]byte, error) {
	answer, err := r.TPMCloser.Send(command)
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCQuote && *r.left > 0 {
		*r.left--
		r.p.measure("/usr/bin/program")
	}
	return answer, err
}

// IMA goes on measuring while the chip quotes, as in the first minute of a boot.
func TestTpm_MachineThatIsStillBooting(t *testing.T) {
	p := newTpmPC(t)
	left := 0
	p.host.TPM = func() (transport.TPMCloser, error) { return restless{p.chip.Dial(), p, &left}, nil }
	p.startAgent()
	for i, tier := range []protocol.Tier{protocol.TierSoftware, protocol.TierTPM, protocol.TierTPM} {
		left = 12
		p.good(tier, i == 1)
		if left != 0 {
			t.Fatal("nothing was measured meanwhile")
		}
	}
}

// No chip, no complaint; a chip that cannot be used, or that nobody measured into,
// is told once.
func TestTpm_MachinesThatStayAtT0(t *testing.T) {
	p := newTpmPC(t)
	p.host.TPM = func() (transport.TPMCloser, error) { return nil, fs.ErrNotExist }
	p.startAgent()
	for range 3 {
		p.good(protocol.TierSoftware, false)
	}
	p.host.TPM = func() (transport.TPMCloser, error) { return broken{}, nil }
	p.startAgent()
	p.wants(p.judge(protocol.OpTpm), protocol.Info, expect.ReasonTpmUnusable, "already closed")
	p.good(protocol.TierSoftware, false)

	p = newTpmPC(t)
	p.events = p.events[:3] // nothing was measured by a stub: BIOS, or a boot loader
	p.session(testSession, true)
	p.wants(p.judge(protocol.OpTpm), protocol.Info, expect.ReasonTpmUnmeasured, "")
	p.good(protocol.TierSoftware, false)
	if len(p.refs) != 0 {
		t.Error("something was enrolled")
	}
}

type broken struct{}

func (broken) Send([]byte) ([]byte, error) { return nil, errOutOfOrder }
func (broken) Close() error                { return nil }

var errOutOfOrder = &fs.PathError{Op: "read", Path: "/dev/tpmrm0", Err: fs.ErrClosed}

func TestAttackTpmDowngrade(t *testing.T) {
	p := enrolledTpmPC(t)
	p.session(secondSession, true)
	honest := p.host.TPM
	p.host.TPM = func() (transport.TPMCloser, error) { return nil, fs.ErrNotExist }
	p.startAgent()
	p.wants(p.judge(protocol.OpTpm), protocol.Fatal, expect.ReasonTpmMissing, "")
	if tier, _ := p.settle(); tier != protocol.TierSoftware {
		t.Errorf("tier %s", tier)
	}
	p.host.TPM = func() (transport.TPMCloser, error) { return broken{}, nil }
	p.startAgent()
	p.wants(p.judge(protocol.OpTpm), protocol.Soft, expect.ReasonTpmFault, "")
	p.events = p.events[:3]
	p.host.TPM = honest
	p.session(secondSession, true)
	p.wants(p.judge(protocol.OpTpm), protocol.Fatal, expect.ReasonTpmRegister, "register 11")
	// The operator removes the enrolment: the PC is one without a chip again.
	clear(p.refs)
	p.host.TPM = func() (transport.TPMCloser, error) { return nil, fs.ErrNotExist }
	p.session(testSession, false)
	p.startAgent()
	p.good(protocol.TierSoftware, false)
}

func TestAttackAnotherTpm(t *testing.T) {
	p := enrolledTpmPC(t)
	own := p.chip
	p.chip = tpmtest.Start(t)
	p.session(secondSession, false)
	p.machine.special["tpm0/binary_bios_measurements"] = ""
	p.boot()
	p.wants(p.judge(protocol.OpTpm), protocol.Fatal, expect.ReasonTpmIdentity, "enrolled is")
	// It shows the right keys and signs with the other chip.
	other := p.input(protocol.OpTpm, false)
	var d protocol.TpmData
	p.check(json.Unmarshal(other.Output.Data, &d))
	var r struct {
		Identity struct {
			EK []byte `json:"ek"`
			AK []byte `json:"ak"`
		} `json:"identity"`
	}
	for _, b := range p.refs {
		p.check(json.Unmarshal(b, &r))
	}
	d.EK, d.AK = r.Identity.EK, r.Identity.AK
	p.wants(p.twins[protocol.OpTpm].Judge(redo(p, other, d)), protocol.Fatal, expect.ReasonTpmQuote, "not signed")
	p.chip = own
	p.session(secondSession, true)
	p.good(protocol.TierTPM, false)
}

// An attestation key in another chip than the endorsement key's: a software key
// could be passed off with the endorsement key of a real chip.
func TestAttackTpmKeysInTwoChips(t *testing.T) {
	p := newTpmPC(t)
	second := newTpmPC(t)
	var ek protocol.TpmData
	p.check(json.Unmarshal(second.input(protocol.OpTpm, false).Output.Data, &ek))
	if f := p.changed(func(d *protocol.TpmData) { d.EK = ek.EK }); len(f) > 0 {
		t.Fatalf("%+v", f)
	}
	p.wants(p.changed(func(d *protocol.TpmData) {}), protocol.Fatal, expect.ReasonTpmMissing, "activate credential")
	p.wants(p.changed(func(d *protocol.TpmData) { d.Present = false }), protocol.Fatal, expect.ReasonTpmMissing, "")
	if tier, taken := p.settle(); tier != protocol.TierSoftware || taken {
		t.Errorf("tier %s, taken %v", tier, taken)
	}
	// A guess instead of the secret.
	p = newTpmPC(t)
	p.good(protocol.TierSoftware, false)
	p.wants(p.changed(func(d *protocol.TpmData) { d.Activated[0] ^= 1 }), protocol.Fatal, expect.ReasonTpmCredential, "")
	p.wants(p.changed(func(d *protocol.TpmData) { d.Activated = nil }), protocol.Fatal, expect.ReasonTpmCredential, "")
	if tier, taken := p.settle(); tier != protocol.TierSoftware || taken {
		t.Errorf("tier %s, taken %v", tier, taken)
	}
	p.good(protocol.TierTPM, true)
}

// A quote fits one question on one channel in one session only: any bit of what
// it is bound to, or of the quote, and it is refused.
func TestAttackTpmQuoteIsFresh(t *testing.T) {
	p := enrolledTpmPC(t)
	twin := p.twins[protocol.OpTpm]
	old := p.input(protocol.OpTpm, false)
	var was protocol.TpmData
	p.check(json.Unmarshal(old.Output.Data, &was))
	refused := func(what string, in protocol.JudgeInput, d protocol.TpmData) {
		t.Helper()
		if f := twin.Judge(redo(p, in, d)); len(f) != 1 || f[0].Reason != expect.ReasonTpmQuote || f[0].Class != protocol.Fatal {
			t.Errorf("%s: %+v", what, f)
		}
	}
	now := p.ask(protocol.OpTpm, false)
	refused("a replayed quote", now, was)
	for bit := range 8 * 32 {
		in := old
		in.Key[bit/8] ^= 1 << (bit % 8)
		refused("one bit of nonce, channel or challenge", in, was)
	}
	var q protocol.TpmParams
	p.check(json.Unmarshal(old.Params, &q))
	for name, change := range map[string]func(*protocol.TpmParams){
		"session": func(q *protocol.TpmParams) { q.Session = secondSession },
		"nonce":   func(q *protocol.TpmParams) { q.Nonce[31] ^= 1 },
		"list":    func(q *protocol.TpmParams) { q.ListFrom++ },
	} {
		other := q
		other.Nonce = bytes.Clone(q.Nonce)
		change(&other)
		in := old
		var err error
		in.Params, err = protocol.EncodeOp(other)
		p.check(err)
		refused("another "+name, in, was)
	}
	for i := range 8 * len(was.Quote.Message) {
		d, quote := was, *was.Quote
		quote.Message = bytes.Clone(quote.Message)
		quote.Message[i/8] ^= 1 << (i % 8)
		d.Quote = &quote
		refused("one bit of the message", old, d)
	}
	for i := range was.Quote.PCRs {
		d, quote := was, *was.Quote
		quote.PCRs = slices.Clone(quote.PCRs)
		b, err := hex.DecodeString(quote.PCRs[i].Value)
		p.check(err)
		b[i] ^= 1
		quote.PCRs[i].Value = hex.EncodeToString(b)
		d.Quote = &quote
		refused("one bit of a register", old, d)
	}
	if f := twin.Judge(old); len(f) > 0 {
		t.Errorf("the honest answer: %+v", f)
	}
}

// No two questions have the same nonce, and none of their keys gives the same
// qualifying data.
func TestTpmNoncesAreNeverEqual(t *testing.T) {
	m := newMachine(t)
	seen := map[[32]byte]bool{}
	nonces := map[string]bool{}
	for i := range 2000 {
		in := m.ask(protocol.OpTpm, false)
		in.Key = sha256.Sum256(binary.BigEndian.AppendUint32(in.Key[:], uint32(i)))
		var q protocol.TpmParams
		m.check(json.Unmarshal(in.Params, &q))
		for _, d := range [][32]byte{in.Key.Qualifying(in.Params), in.Key.Activated(in.Params, q.Nonce)} {
			if seen[d] {
				t.Fatal("the same qualifying data twice")
			}
			seen[d] = true
		}
		nonces[string(q.Nonce)] = true
	}
	// The tests' source of randomness begins anew every 256 questions.
	if len(nonces) != 256 {
		t.Errorf("%d nonces of 256 states of the random source", len(nonces))
	}
}

func TestAttackTpmForgedBoot(t *testing.T) {
	evil := eventlogtest.Event{PCR: 4, Type: 0x80000003, Digest: [32]byte{66}}
	for _, row := range []struct {
		name, reason, detail string
		attack               func(*tpmPC)
	}{
		{"another command line", expect.ReasonTpmRegister, "register 9", func(p *tpmPC) {
			p.events = eventlogtest.Boot(imageDigest, kernelDigest, [][32]byte{{10}, {99}}, eleven)
		}},
		{"another image", expect.ReasonTpmProgram, "program 1 of 2", func(p *tpmPC) {
			p.events = eventlogtest.Boot([32]byte{66}, kernelDigest, nine, eleven)
		}},
		{"a program before the image that fills the registers alike", expect.ReasonTpmProgram, "program 1 of 3", func(p *tpmPC) {
			at := slices.IndexFunc(p.events, func(e eventlogtest.Event) bool { return e.Type == evil.Type })
			p.events = slices.Insert(p.events, at, evil)
		}},
		{"another kernel by kexec or a loader", expect.ReasonTpmProgram, "program 2 of 3", func(p *tpmPC) { p.events = append(p.events, evil) }},
		{"words added by the stub", expect.ReasonTpmRegister, "register 12", func(p *tpmPC) {
			p.events = append(p.events, eventlogtest.Said(12, 13, []byte("init=/attack")))
		}},
		{"a boot loader", expect.ReasonTpmRegister, "register 8", func(p *tpmPC) { p.extend(8, [32]byte{1}) }},
		{"a register extended behind the log's back", expect.ReasonTpmLog, "register 7", func(p *tpmPC) { p.extend(7, [32]byte{1}) }},
		{"a forged log", expect.ReasonTpmLog, "register 4", func(p *tpmPC) {
			p.events[len(p.events)-2].PCR = 4
			p.special["tpm0/binary_bios_measurements"] = string(eventlogtest.Encode(p.events...))
		}},
		{"a log with a type that nobody knows", expect.ReasonTpmLog, "unexpected event", func(p *tpmPC) {
			p.events[1].Type = 0x90000000
			p.special["tpm0/binary_bios_measurements"] = string(eventlogtest.Encode(p.events...))
		}},
		{"no log", expect.ReasonTpmLog, "header", func(p *tpmPC) { delete(p.special, "tpm0/binary_bios_measurements") }},
		{"other firmware", expect.ReasonTpmFirmware, "register 0", func(p *tpmPC) { p.events[0] = eventlogtest.Said(0, 8, []byte("v2")) }},
		{"Secure Boot changed", expect.ReasonTpmFirmware, "register 7", func(p *tpmPC) { p.events[1] = eventlogtest.Said(7, 0x80000001, []byte("SecureBoot=1")) }},
		{"IMA's list shortened", expect.ReasonTpmIMA, "does not lead", func(p *tpmPC) {
			p.measure("/usr/bin/evil")
			p.special[imaList] = p.special[imaList][:len(p.special[imaList])/2]
		}},
		{"IMA's list forged", expect.ReasonTpmIMA, "does not lead", func(p *tpmPC) {
			p.measure("/usr/bin/evil")
			p.special[imaList] = strings.Replace(p.special[imaList], "evil", "good", 1)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := enrolledTpmPC(t)
			events := slices.Clone(p.events)
			row.attack(p)
			if len(events) != len(p.events) || !slices.EqualFunc(events, p.events, func(a, b eventlogtest.Event) bool { return a.PCR == b.PCR && a.Digest == b.Digest }) {
				forged := p.events[len(p.events)-2].PCR == 4 && len(events) == len(p.events)
				log := p.special["tpm0/binary_bios_measurements"]
				if forged {
					p.events = events
				}
				p.session(secondSession, true)
				if forged {
					p.special["tpm0/binary_bios_measurements"] = log
				}
			} else {
				p.session(testSession, false)
			}
			p.wants(p.judge(protocol.OpTpm), protocol.Fatal, row.reason, row.detail)
			if tier, taken := p.settle(); tier != protocol.TierSoftware || taken {
				t.Errorf("tier %s, taken %v", tier, taken)
			}
		})
	}
}

// The chip counts its starts: a session for which it was not started is no boot, and
// one in which it is started anew is two.
func TestAttackTpmClock(t *testing.T) {
	p := enrolledTpmPC(t)
	p.session(secondSession, false)
	p.wants(p.judge(protocol.OpTpm), protocol.Fatal, expect.ReasonTpmNotReset, "")
	p.session(secondSession, true)
	p.good(protocol.TierTPM, false)
	p.chip.Reboot(t)
	p.boot()
	p.wants(p.judge(protocol.OpTpm), protocol.Fatal, expect.ReasonTpmClock, "within the session")
	p.session(secondSession, false) // attestd was started anew meanwhile
	p.wants(p.judge(protocol.OpTpm), protocol.Fatal, expect.ReasonTpmClock, "within the session")
}

func TestTpmRegisterExtendedAfterTheBoot(t *testing.T) {
	p := enrolledTpmPC(t)
	p.extend(11, [32]byte{1})
	p.wants(p.judge(protocol.OpTpm), protocol.Fatal, expect.ReasonTpmRegister, "register 11 was extended")
}

// Nothing stays behind in the chip, whatever the answers were.
func TestTpmThousandsOfQuotesLeakNothing(t *testing.T) {
	p := enrolledTpmPC(t)
	for i := range 2000 {
		switch {
		case i%500 == 250: // every fourth hundred the agent begins anew
			p.check(p.probes[protocol.OpTpm].(interface{ Close() error }).Close())
			p.session(testSession, false)
		case i%100 == 50:
			p.measure("/usr/bin/program")
		}
		p.good(protocol.TierTPM, false)
	}
	p.check(p.probes[protocol.OpTpm].(interface{ Close() error }).Close())
	for name, first := range map[string]uint32{"transient keys": 0x80000000, "loaded sessions": 0x02000000, "saved sessions": 0x03000000} {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(p.chip.Dial())
		p.check(err)
		handles, err := r.CapabilityData.Data.Handles()
		p.check(err)
		if len(handles.Handle) != 0 {
			t.Errorf("%s: %x", name, handles.Handle)
		}
	}
}
