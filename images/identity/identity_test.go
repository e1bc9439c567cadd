package identity

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gateway "portcullis/attestserver/identity"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
)

func sources(t *testing.T) (Sources, []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gateway.key")
	key, err := gateway.LoadOrCreate(file)
	if err != nil {
		t.Fatal(err)
	}
	return Sources{KeyFile: file, Handover: &card.Handover{Model: card.ModelPi4, Slot: card.SlotA, Backend: "tpm2"},
		TPM: func(context.Context) (*tpm2.Enrolment, error) {
			return &tpm2.Enrolment{Version: 1, EKKind: tpm2.EKECC, EK: []byte("ek"), EKCert: []byte("cert"), AK: []byte("ak")}, nil
		}}, gateway.PublicKey(key)
}

// The record names the public halves, and holds no byte of the private one.
func TestRecordIsPublic(t *testing.T) {
	s, public := sources(t)
	r, err := Collect(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(b)
	if err != nil || !bytes.Equal(back.GatewayKey, public) || !back.Chip.HasCert || back.Booted.Slot != card.SlotA {
		t.Fatalf("%+v %v", back, err)
	}
	if want := "portcullis: identity gateway=" + base64.StdEncoding.EncodeToString(public); back.Line() != want {
		t.Errorf("%q, want %q", back.Line(), want)
	}
	key, err := gateway.Load(s.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{key.Seed(), []byte(base64.StdEncoding.EncodeToString(key.Seed()))} {
		if bytes.Contains(b, secret) {
			t.Error("the private key is in the record")
		}
	}
}

// What first boot wrote down stays in the record, however often it is written anew.
func TestFirstBootsRecordStays(t *testing.T) {
	s, _ := sources(t)
	first, err := json.Marshal(card.Enrolment{Schema: card.EnrolmentSchema, Volume: "v", Release: 1, Escrow: true})
	if err != nil {
		t.Fatal(err)
	}
	for s.Before = first; ; {
		r, err := Collect(t.Context(), s)
		if err != nil || r.Enrolled == nil || r.Enrolled.Volume != "v" || !r.Enrolled.Escrow {
			t.Fatalf("%+v %v", r, err)
		}
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(b, s.Before) {
			return
		}
		s.Before = b
	}
}

func TestPiWithoutItsParts(t *testing.T) {
	s, _ := sources(t)
	s.TPM = func(context.Context) (*tpm2.Enrolment, error) { return nil, errors.New("root-busy") }
	if r, err := Collect(t.Context(), s); err != nil || r.Chip != nil || r.ChipProblem != "root-busy" {
		t.Errorf("%+v %v", r, err)
	}
	s.Handover.Backend = ""
	if r, err := Collect(t.Context(), s); err != nil || r.Chip != nil || r.ChipProblem != "" {
		t.Errorf("%+v %v", r, err)
	}
	r, err := Collect(t.Context(), Sources{KeyFile: filepath.Join(t.TempDir(), "none")})
	if err != nil || r.GatewayKey != nil || r.Booted != nil || !strings.HasSuffix(r.Line(), "=none") {
		t.Errorf("%+v %v", r, err)
	}
	if err := os.Chmod(s.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Collect(t.Context(), s); !errors.Is(err, gateway.ErrMode) {
		t.Errorf("a key file open to others: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schema":"` + Schema + `","gateway_key":null,"booted":null,"chip":null}`))
	f.Add([]byte(`{"schema":"` + Schema + `","gateway_key":"AA==","booted":{},"chip":{"has_ek_cert":true}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err != nil {
			return
		}
		if _, err := r.Encode(); err != nil && len(b) < MaxRecord/4 {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
