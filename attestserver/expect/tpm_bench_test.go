package expect_test

import (
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"syscall"
	"testing"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/hardware/tpmattest"
)

// quoteFile is what BenchmarkTpmJudge leaves at PORTCULLIS_QUOTE_OUT: the same quote,
// log and key, for others to verify (bench/attest/README.md).
type quoteFile struct {
	AK    []byte // TPMT_PUBLIC
	Nonce []byte
	Quote *protocol.TpmQuote
	Log   []byte
}

// BenchmarkTpmJudge is what judging one answer of op tpm costs: the keyed digest, the
// quote of a TPM 2.0 (swtpm, P-256) over nine registers, the replay of the firmware's
// log, the prediction of registers 9, 11 and 12, and the clock. "first" brings the
// log and the keys, as the first answer of a boot does; "next" is each one after it.
func BenchmarkTpmJudge(b *testing.B) {
	p := enrolledTpmPC(b)
	p.session("bbbbbbbbbbbbbbbbbbbbbbbbbb", true)
	for _, what := range []string{"first", "next"} {
		before, kept := maps.Clone(p.state.Notes), maps.Clone(p.state.Kept)
		in := p.input(protocol.OpTpm, false)
		b.Run(what, func(b *testing.B) {
			defer reportCPU(b)()
			for b.Loop() {
				state := *p.state
				state.Notes, state.Kept = maps.Clone(before), maps.Clone(kept)
				in.State = &state
				for _, f := range p.twins[protocol.OpTpm].Judge(in) {
					b.Fatalf("%+v", f)
				}
			}
		})
		if what == "first" {
			writeQuote(b, p, in)
		}
		in.State = p.state
		p.twins[protocol.OpTpm].Judge(in)
	}
}

func writeQuote(b *testing.B, p *tpmPC, in protocol.JudgeInput) {
	path := os.Getenv("PORTCULLIS_QUOTE_OUT")
	if path == "" {
		return
	}
	var d protocol.TpmData
	p.check(json.Unmarshal(in.Output.Data, &d))
	nonce := in.Key.Qualifying(in.Params)
	out, err := json.Marshal(quoteFile{d.AK, nonce[:], d.Quote, d.Log})
	p.check(err)
	p.check(os.WriteFile(path, out, 0o600))
	b.Run("quote", func(b *testing.B) { // what go-attestation's Verify does, and no more
		q := &tpmattest.Quote{Message: d.Quote.Message, Signature: d.Quote.Signature, PCRs: map[int]tpmattest.Register{}}
		for _, r := range d.Quote.PCRs {
			q.PCRs[r.Index] = register(b, r.Value)
		}
		defer reportCPU(b)()
		for b.Loop() {
			if _, err := tpmattest.VerifyQuote(d.AK, q, nonce[:], protocol.TpmRegisters); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// reportCPU reports what the process has used meanwhile: on a busy machine time says
// nothing.
func reportCPU(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Nanoseconds())/1000/float64(b.N), "cpu-µs/op") }
}

func register(b *testing.B, text string) (v tpmattest.Register) {
	if n, err := hex.Decode(v[:], []byte(text)); err != nil || n != len(v) {
		b.Fatalf("register %q: %v", text, err)
	}
	return v
}
