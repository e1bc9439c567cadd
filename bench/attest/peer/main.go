// Command peer verifies with google/go-attestation what BenchmarkTpmJudge has judged:
// the same quote of the same chip, and the same event log. It is a module of its own:
// nothing of the product depends on it. See ../README.md.
package main

import (
	"crypto"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/google/go-attestation/attest"
)

// quoteFile is what the benchmark leaves.
type quoteFile struct {
	AK    []byte
	Nonce []byte
	Quote struct {
		Message   []byte `json:"message"`
		Signature []byte `json:"signature"`
		PCRs      []struct {
			Index int    `json:"index"`
			Value string `json:"value"`
		} `json:"pcrs"`
	}
	Log []byte
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: peer QUOTE.json ROUNDS")
	}
	rounds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var f quoteFile
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	signature, err := tpmSignature(f.Quote.Signature)
	if err != nil {
		return err
	}
	quote := attest.Quote{Quote: f.Quote.Message, Signature: signature}
	pcrs := func() (all []attest.PCR, err error) {
		for _, p := range f.Quote.PCRs {
			digest, err := hex.DecodeString(p.Value)
			if err != nil {
				return nil, err
			}
			all = append(all, attest.PCR{Index: p.Index, Digest: digest, DigestAlg: crypto.SHA256})
		}
		return all, nil
	}
	verify := func(log bool) error {
		ak, err := attest.ParseAKPublic(f.AK)
		if err != nil {
			return err
		}
		all, err := pcrs()
		if err != nil {
			return err
		}
		if err := ak.Verify(quote, all, f.Nonce); err != nil || !log {
			return err
		}
		parsed, err := attest.ParseEventLog(f.Log)
		if err != nil {
			return err
		}
		var boot []attest.PCR
		for _, p := range all {
			if p.Index != 10 { // IMA's is in no firmware log
				boot = append(boot, p)
			}
		}
		_, err = parsed.Verify(boot)
		return err
	}
	for _, x := range []struct {
		what string
		log  bool
	}{{"quote", false}, {"quote and event log", true}} {
		before := used()
		for range rounds {
			if err := verify(x.log); err != nil {
				return fmt.Errorf("%s: %w", x.what, err)
			}
		}
		fmt.Printf("go-attestation, %s: %.1f cpu-µs\n", x.what, float64((used()-before).Nanoseconds())/1000/float64(rounds))
	}
	return nil
}

// tpmSignature makes a TPMT_SIGNATURE (TPM 2.0 Part 2, 11.3.4) of an ASN.1 one, ECDSA
// with SHA-256.
func tpmSignature(der []byte) ([]byte, error) {
	var s struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &s); err != nil {
		return nil, err
	}
	out := []byte{0x00, 0x18, 0x00, 0x0b}
	for _, n := range []*big.Int{s.R, s.S} {
		out = binary.BigEndian.AppendUint16(out, 32)
		out = append(out, n.FillBytes(make([]byte, 32))...)
	}
	return out, nil
}

func used() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
