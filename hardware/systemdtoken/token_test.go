package systemdtoken

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"portcullis/hardware"
	hwtpm2 "portcullis/hardware/tpm2"
	"portcullis/hardware/tpm2/tpmtest"
)

// example is a token of ours, which the interop tests prove to be systemd's kind.
func example(t testing.TB) []byte {
	t.Helper()
	chip, err := hwtpm2.Open(tpmtest.Start(t).Path, hwtpm2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer chip.Close()
	tok, _, err := Enrol(t.Context(), chip, Enrolment{PCRs: []int{7}, Unmeasured: true})
	if err != nil {
		t.Fatal(err)
	}
	tok.Keyslots = []string{"1"}
	b, err := tok.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTokenRefusals(t *testing.T) {
	good := example(t)
	for name, c := range map[string]struct {
		change func(map[string]any)
		reason hardware.Reason
	}{
		"another type":             {func(m map[string]any) { m["type"] = "systemd-fido2" }, hardware.ReasonBadBlob},
		"no keyslot":               {func(m map[string]any) { m["keyslots"] = []string{} }, hardware.ReasonBadBlob},
		"blob is not base64":       {func(m map[string]any) { m["tpm2-blob"] = "!" }, hardware.ReasonBadBlob},
		"blob is cut":              {func(m map[string]any) { m["tpm2-blob"] = "AAQA" }, hardware.ReasonBadBlob},
		"blob is empty":            {func(m map[string]any) { m["tpm2-blob"] = "" }, hardware.ReasonBadBlob},
		"sealed away from chip":    {func(m map[string]any) { m["tpm2-blob"] = "AAEBAAEBAAEB" }, hardware.ReasonUnsupported},
		"sharded":                  {func(m map[string]any) { m["tpm2-blob"] = []string{"AAEB", "AAEB"} }, hardware.ReasonUnsupported},
		"pcrlock":                  {func(m map[string]any) { m["tpm2_pcrlock"] = true }, hardware.ReasonUnsupported},
		"bank":                     {func(m map[string]any) { m["tpm2-pcr-bank"] = "sm3_256" }, hardware.ReasonUnsupported},
		"primary key":              {func(m map[string]any) { m["tpm2-primary-alg"] = "camellia" }, hardware.ReasonUnsupported},
		"register 24":              {func(m map[string]any) { m["tpm2-pcrs"] = []int{24} }, hardware.ReasonBadBlob},
		"register twice":           {func(m map[string]any) { m["tpm2-pcrs"] = []int{7, 7} }, hardware.ReasonBadBlob},
		"policy hash is cut":       {func(m map[string]any) { m["tpm2-policy-hash"] = "00" }, hardware.ReasonBadBlob},
		"signed registers, no key": {func(m map[string]any) { m["tpm2_pubkey_pcrs"] = []int{11} }, hardware.ReasonBadBlob},
		"policy key is not PEM": {func(m map[string]any) {
			m["tpm2_pubkey_pcrs"], m["tpm2_pubkey"] = []int{11}, "AAAA"
		}, hardware.ReasonBadBlob},
		"storage key is cut":      {func(m map[string]any) { m["tpm2_srk"] = "gQAAAQ==" }, hardware.ReasonBadBlob},
		"storage key, other name": {func(m map[string]any) { m["tpm2_srk"] = flip(m["tpm2_srk"].(string)) }, hardware.ReasonBadBlob},
	} {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		c.change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(b); err == nil || hardware.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v, want %s", name, err, c.reason)
		}
	}
	for name, b := range map[string][]byte{"something behind": append(bytes.Clone(good), '1'), "too large": append(bytes.Clone(good), make([]byte, MaxToken)...), "empty": nil} {
		if _, err := Parse(b); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What systemd adds one day, or writes as a list of one.
	var m map[string]any
	if err := json.Unmarshal(good, &m); err != nil {
		t.Fatal(err)
	}
	m["tpm2-new"], m["tpm2-blob"], m["tpm2-policy-hash"] = "x", []any{m["tpm2-blob"]}, []any{m["tpm2-policy-hash"]}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(b); err != nil {
		t.Error(err)
	}
}

// flip changes a letter in the middle of the name inside tpm2_srk.
func flip(s string) string {
	if s[20] == 'A' {
		return s[:20] + "B" + s[21:]
	}
	return s[:20] + "A" + s[21:]
}

func TestSignaturesRefusals(t *testing.T) {
	const good = `{"sha256":[{"pcrs":[11],"pkfp":"` + zeros + `","pol":"` + zeros + `","sig":"AAAA"}]}`
	if _, err := ParseSignatures([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty":            "",
		"something behind": good + "1",
		"short policy":     strings.Replace(good, `"pol":"00`, `"pol":"`, 1),
		"no signature":     strings.Replace(good, `"AAAA"`, `""`, 1),
		"too large":        good + strings.Repeat(" ", MaxSignatures),
	} {
		if _, err := ParseSignatures([]byte(b)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

const zeros = "0000000000000000000000000000000000000000000000000000000000000000"

func FuzzParse(f *testing.F) {
	f.Add(example(f))
	f.Add([]byte(`{"type":"systemd-tpm2","keyslots":["1"],"tpm2-blob":"AAEBAAEB","tpm2-pcrs":[],"tpm2-policy-hash":"` + zeros + `"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := Parse(b)
		if err != nil {
			return
		}
		again, err := tok.Encode()
		if err != nil {
			if len(b) < MaxToken/2 {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			return
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("what was written cannot be read: %v", err)
		}
	})
}

func FuzzParseSignatures(f *testing.F) {
	f.Add([]byte(`{"sha256":[{"pcrs":[11],"pkfp":"` + zeros + `","pol":"` + zeros + `","sig":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseSignatures(b); err == nil {
			_ = s.find(11, []int{11}, nil, nil)
		}
	})
}

// TestAttackTokenThatBindsNothing: systemd-cryptenroll makes tokens that the chip
// opens for any software, with no registers or with those that nobody fills.
func TestAttackTokenThatBindsNothing(t *testing.T) {
	chip, err := hwtpm2.Open(tpmtest.Start(t).Path, hwtpm2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer chip.Close()
	enrol := func(e Enrolment) *Token {
		t.Helper()
		tok, _, err := Enrol(t.Context(), chip, e)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	empty := enrol(Enrolment{PCRs: []int{7}, Unmeasured: true})
	none := *empty
	none.PCRs = nil
	for name, tok := range map[string]*Token{"an empty register": empty, "no register": &none} {
		if pass, err := Unseal(t.Context(), chip, tok, Options{}); hardware.ReasonOf(err) != hwtpm2.ReasonPCREmpty || pass != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Unseal(t.Context(), chip, empty, Options{Unmeasured: true}); err != nil {
		t.Errorf("asked for: %v", err)
	}
	if err := chip.Extend(t.Context(), 7, []byte("measured")); err != nil {
		t.Fatal(err)
	}
	if _, err := Unseal(t.Context(), chip, enrol(Enrolment{PCRs: []int{7}}), Options{}); err != nil {
		t.Error(err)
	}
}
