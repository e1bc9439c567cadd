package tpmattest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// attest is a quote's message as go-tpm writes it.
func attest(pcrs ...int) *tpm2.TPMSAttest {
	return &tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote,
		QualifiedSigner: tpm2.TPM2BName{Buffer: bytes.Repeat([]byte{7}, 34)}, ExtraData: tpm2.TPM2BData{Buffer: bytes.Repeat([]byte{8}, 32)},
		ClockInfo:       tpm2.TPMSClockInfo{Clock: 1 << 40, ResetCount: 3, RestartCount: 5, Safe: true},
		FirmwareVersion: 1 << 50,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRSelect: Selection(pcrs...),
			PCRDigest: tpm2.TPM2BDigest{Buffer: bytes.Repeat([]byte{9}, 32)}}),
	}
}

// oracle reads a statement by go-tpm.
func oracle(b []byte) (s *statement, err error) {
	defer func() {
		if r := recover(); r != nil { // go-tpm v0.9.8 panics at some
			s, err = nil, fmt.Errorf("message: %v", r)
		}
	}()
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(a), b) || a.Magic != tpm2.TPMGeneratedValue {
		return nil, errors.New("message: something follows, or is not canonical")
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return nil, err
	}
	return &statement{signer: a.QualifiedSigner.Buffer, nonce: a.ExtraData.Buffer, clock: a.ClockInfo.Clock, resets: a.ClockInfo.ResetCount,
		restarts: a.ClockInfo.RestartCount, safe: bool(a.ClockInfo.Safe), firmware: a.FirmwareVersion,
		selection: tpm2.Marshal(info.PCRSelect), digest: info.PCRDigest.Buffer}, nil
}

// valid tells whether a quote with it could be taken: a statement over registers of
// another bank never is, whatever else stands in it.
func valid(s *statement, err error) bool {
	return err == nil && len(s.selection) == len(selectionOf(nil)) && bytes.Equal(s.selection[:7], selectionOf(nil)[:7])
}

func same(a, b *statement) bool {
	return bytes.Equal(a.signer, b.signer) && bytes.Equal(a.nonce, b.nonce) && a.clock == b.clock && a.resets == b.resets && a.restarts == b.restarts &&
		a.safe == b.safe && a.firmware == b.firmware && bytes.Equal(a.selection, b.selection) && bytes.Equal(a.digest, b.digest)
}

// agree holds our reader against go-tpm's.
func agree(t *testing.T, b []byte) {
	t.Helper()
	ours, err := parseStatement(b)
	theirs, other := oracle(b)
	switch {
	case valid(ours, err) != valid(theirs, other):
		t.Fatalf("%x: ours %v, go-tpm %v", b, err, other)
	case valid(ours, err) && !same(ours, theirs):
		t.Fatalf("%x: %+v, go-tpm %+v", b, ours, theirs)
	}
}

// Each byte of a message changed to other values, each length: ours and go-tpm's agree.
func TestStatementsAreReadAsGoTPMReadsThem(t *testing.T) {
	good := tpm2.Marshal(attest(0, 7, 11, 23))
	s, err := parseStatement(good)
	if err != nil || !s.safe || s.clock != 1<<40 || s.resets != 3 || s.restarts != 5 || s.firmware != 1<<50 {
		t.Fatalf("%+v, %v", s, err)
	}
	agree(t, good)
	for i := range good {
		agree(t, good[:i])
		for _, v := range []byte{0, 1, 2, 3, 4, 0x0b, 0x0c, 0x7f, 0x80, 0xff} {
			b := slices.Clone(good)
			b[i] = v
			agree(t, b)
		}
	}
	agree(t, append(slices.Clone(good), 0))
	time := attest()
	time.Type, time.Attested = tpm2.TPMSTAttestTime, tpm2.NewTPMUAttest(tpm2.TPMSTAttestTime, &tpm2.TPMSTimeAttestInfo{})
	agree(t, tpm2.Marshal(time))
}

func TestSelectionIsThatOfGoTPM(t *testing.T) {
	for _, pcrs := range [][]int{{0}, {23}, {8}, {0, 2, 4, 7, 8, 9, 10, 11, 12}, {7, 8, 15, 16}} {
		if got, want := selectionOf(pcrs), tpm2.Marshal(Selection(pcrs...)); !bytes.Equal(got, want) {
			t.Errorf("%v: %x, go-tpm %x", pcrs, got, want)
		}
	}
}

func FuzzParseStatement(f *testing.F) {
	f.Add(tpm2.Marshal(attest(8)))
	f.Add(tpm2.Marshal(attest(0, 2, 4, 7, 8, 9, 10, 11, 12)))
	f.Add([]byte{0xff, 'T', 'C', 'G', 0x80, 0x18, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) <= MaxQuote {
			agree(t, b)
		}
	})
}
