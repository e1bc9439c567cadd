package protocol

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func usualTpm() (*TpmParams, *TpmData) {
	p := &TpmParams{Session: strings.Repeat("a", 26), Nonce: bytes.Repeat([]byte{0xfb}, 32), ListFrom: 1 << 20}
	d := &TpmData{Present: true, Quote: &TpmQuote{Message: bytes.Repeat([]byte{0xff, 1}, 70), Signature: bytes.Repeat([]byte{0xef}, 71)}, List: bytes.Repeat([]byte{7}, 101)}
	for _, i := range TpmRegisters {
		d.Quote.PCRs = append(d.Quote.PCRs, TpmPCR{i, hex.EncodeToString(bytes.Repeat([]byte{byte(i)}, 32))})
	}
	return p, d
}

// agrees holds what is read by hand against encoding/json; it tells whether it was.
func agrees[T any](t *testing.T, data []byte, read func(*T) bool) bool {
	t.Helper()
	var ours, theirs, none T
	if !read(&ours) {
		if !reflect.DeepEqual(ours, none) {
			t.Fatalf("%s: refused, and yet %+v", data, ours)
		}
		return false
	}
	if err := decodeOne(data, &theirs); err != nil || !reflect.DeepEqual(ours, theirs) {
		t.Fatalf("%s: by hand %+v, encoding/json has %+v, %v", data, ours, theirs, err)
	}
	return true
}

func bothAgree(t *testing.T, data []byte) (params, answer bool) {
	t.Helper()
	return agrees(t, data, func(p *TpmParams) bool { return p.readPlain(data) }), agrees(t, data, func(d *TpmData) bool { return d.readPlain(data) })
}

// What every answer with a quote has is read by hand; each byte of it changed, added or
// left out, it is read as encoding/json reads it or left to that.
func TestPlainIsWhatJSONSays(t *testing.T) {
	p, d := usualTpm()
	var all [][]byte
	for _, v := range []any{p, d, &TpmData{Present: true, Quote: d.Quote}, &TpmData{Present: true, Quote: d.Quote, More: true, List: d.List}} {
		b, err := EncodeOp(v)
		if err != nil {
			t.Fatal(err)
		}
		if params, answer := bothAgree(t, b); params == answer {
			t.Fatalf("%s is not read by hand", b)
		}
		all = append(all, b)
	}
	for _, b := range all[:3] {
		for i := range b {
			bothAgree(t, b[:i])
			bothAgree(t, slices.Delete(slices.Clone(b), i, i+1))
			for _, c := range []byte("0a\"\\ ,{}[]:\n\x00\xff-.E=") {
				bothAgree(t, slices.Insert(slices.Clone(b), i, c))
				changed := slices.Clone(b)
				changed[i] = c
				bothAgree(t, changed)
			}
		}
		bothAgree(t, append(slices.Clone(b), '\n'))
	}
	for _, v := range []any{&TpmData{}, &TpmData{Present: true}, &TpmData{Present: true, Fault: "x", Quote: d.Quote}, &TpmData{Present: true, AK: []byte{1}, Quote: d.Quote}} {
		b, err := EncodeOp(v)
		if err != nil {
			t.Fatal(err)
		}
		var read TpmData
		if err := DecodeOp(b, MaxData, &read); err != nil || !reflect.DeepEqual(&read, v) {
			t.Errorf("%s: %+v, %v", b, read, err)
		}
	}
}

func FuzzPlain(f *testing.F) {
	p, d := usualTpm()
	for _, v := range []any{p, d, &TpmData{Present: true, Quote: &TpmQuote{Message: []byte{}, Signature: []byte{1}, PCRs: []TpmPCR{{0, ""}}}, More: true}} {
		b, err := EncodeOp(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { bothAgree(t, b) })
}

// BenchmarkDecodeTpm is a quote's question and answer, read.
func BenchmarkDecodeTpm(b *testing.B) {
	p, d := usualTpm()
	question, err := EncodeOp(p)
	if err != nil {
		b.Fatal(err)
	}
	answer, err := EncodeOp(d)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var p TpmParams
		var d TpmData
		if err := DecodeOp(question, MaxParams, &p); err != nil {
			b.Fatal(err)
		}
		if err := DecodeOp(answer, MaxData, &d); err != nil {
			b.Fatal(err)
		}
	}
}
