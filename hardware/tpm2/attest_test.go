package tpm2

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/hardware/tpmattest"

	"github.com/google/go-tpm/tpm2"
)

func enrolled(t testing.TB, path string, kind EKKind) (*TPM, *Enrolment) {
	t.Helper()
	c := open(t, path, Config{})
	e, err := c.Enrol(t.Context(), kind)
	if err != nil {
		t.Fatal(err)
	}
	return c, e
}

func TestCredentialProvesBothKeysInOneChip(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []EKKind{EKECC, EKRSA} {
		c, e := enrolled(t, w.chip.Path, kind)
		secret := []byte("thirty-two bytes of a challenge.")
		ch, err := MakeCredential(e, secret)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.ActivateCredential(t.Context(), kind, ch)
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
		again, err := c.Enrol(t.Context(), kind)
		if err != nil || !bytes.Equal(again.AK, e.AK) || !bytes.Equal(again.EK, e.EK) {
			t.Errorf("%s: enrolling twice gives other keys, %v", kind, err)
		}
	}
}

func TestAttackCredentialForAnotherChip(t *testing.T) {
	w := newWorld(t)
	c, e := enrolled(t, w.chip.Path, EKECC)
	_, other := enrolled(t, tpmtest.Start(t).Path, EKECC)
	ch, err := MakeCredential(other, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.ActivateCredential(t.Context(), EKECC, ch)
	wantReason(t, "for another chip", err, hardware.ReasonForeignBlob)
	// This chip's endorsement key, somebody else's attestation key.
	mixed := *e
	mixed.AK = other.AK
	if ch, err = MakeCredential(&mixed, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	_, err = c.ActivateCredential(t.Context(), EKECC, ch)
	wantReason(t, "for another attestation key", err, hardware.ReasonForeignBlob)
	_, err = c.ActivateCredential(t.Context(), EKECC, &Challenge{Credential: []byte{1}, Secret: []byte{2}})
	wantReason(t, "garbage", err, hardware.ReasonForeignBlob)
	_, err = open(t, tpmtest.Start(t).Path, Config{}).ActivateCredential(t.Context(), EKECC, ch)
	wantReason(t, "a chip that is not enrolled", err, hardware.ReasonFailed)
}

func TestAttackKeysThatAreNotOfAChipsKind(t *testing.T) {
	w := newWorld(t)
	c, e := enrolled(t, w.chip.Path, EKECC)
	k, err := c.makePrimary(tpm2.TPMRHEndorsement, deviceTemplate(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.release(k)
	for name, change := range map[string]func(*Enrolment){
		"attestation key that signs anything": func(e *Enrolment) { e.AK = tpm2.Marshal(k.Public) },
		"attestation key, garbage":            func(e *Enrolment) { e.AK = []byte{0, 0x23} },
		"attestation key, more behind":        func(e *Enrolment) { e.AK = append(bytes.Clone(e.AK), 0) },
		"endorsement key that signs":          func(e *Enrolment) { e.EK = e.AK },
		"endorsement key of another kind":     func(e *Enrolment) { e.EKKind = EKRSA },
		"kind":                                func(e *Enrolment) { e.EKKind = "dsa" },
		"version":                             func(e *Enrolment) { e.Version = 2 },
	} {
		bad := *e
		change(&bad)
		if _, err := MakeCredential(&bad, []byte("secret")); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEndorsementCertificate(t *testing.T) {
	w := newWorld(t)
	c, e := enrolled(t, w.chip.Path, "")
	if cert, err := e.Certificate(); cert != nil || err != nil || e.EKKind != EKECC {
		t.Errorf("a chip without certificate: %v, %v, %s", cert, err, e.EKKind)
	}
	_, rsa := enrolled(t, w.chip.Path, EKRSA)
	public, err := unmarshalPublic(rsa.EK)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		t.Fatal(err)
	}
	ca := newPolicyKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	parent := &x509.Certificate{SerialNumber: big.NewInt(2), PublicKey: &ca.PublicKey}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, ca)
	if err != nil {
		t.Fatal(err)
	}
	padded := append(bytes.Clone(der), make([]byte, 64)...) // as some makers do
	index := tpm2.TPMSNVPublic{NVIndex: tpmattest.NVCertRSA, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(padded)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true, OwnerRead: true, NoDA: true}}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(index)}).Execute(c.link); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(padded); off += 512 {
		r, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(tpmattest.NVCertRSA)}.Execute(c.link)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.NVWrite{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: tpm2.NamedHandle{Handle: tpmattest.NVCertRSA, Name: r.NVName}, Offset: uint16(off),
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: padded[off:min(off+512, len(padded))]}}).Execute(c.link); err != nil {
			t.Fatal(err)
		}
	}
	_, e = enrolled(t, w.chip.Path, "")
	cert, err := e.Certificate()
	if err != nil || cert == nil || !bytes.Equal(cert.Raw, der) || e.EKKind != EKRSA {
		t.Errorf("%v, kind %s", err, e.EKKind)
	}
	if e.EKCert, err = x509.CreateCertificate(rand.Reader, template, parent, &ca.PublicKey, ca); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Certificate(); err == nil {
		t.Error("a certificate of another key")
	}
}

func TestQuoteIsFreshAndComplete(t *testing.T) {
	w := newWorld(t)
	w.start(t, Config{})
	c, e := enrolled(t, w.chip.Path, EKECC)
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		t.Fatal(err)
	}
	pcrs := []int{8, 9, 11}
	q, err := c.Quote(t.Context(), nonce, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() *Quote {
		var x Quote
		if err := json.Unmarshal(j, &x); err != nil {
			t.Fatal(err)
		}
		return &x
	}
	got, err := VerifyQuote(e.AK, fresh(), nonce, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.ReadPCR(t.Context(), 9); err != nil || got.PCRs[9] != v {
		t.Errorf("register 9: %x, %v", got.PCRs[9], err)
	}
	_, other := enrolled(t, tpmtest.Start(t).Path, EKECC)
	refused := func(name string, ak []byte, q *Quote, nonce []byte, pcrs []int) {
		t.Helper()
		if _, err := VerifyQuote(ak, q, nonce, pcrs); !errors.Is(err, ErrQuote) {
			t.Errorf("%s: %v", name, err)
		}
	}
	flipped := bytes.Clone(nonce)
	flipped[31] ^= 1
	refused("one bit of the nonce", e.AK, fresh(), flipped, pcrs)
	refused("short nonce", e.AK, fresh(), nonce[:8], pcrs)
	refused("another chip's key", other.AK, fresh(), nonce, pcrs)
	refused("fewer registers", e.AK, fresh(), nonce, pcrs[:2])
	refused("other registers", e.AK, fresh(), nonce, []int{8, 9, 10})
	for name, change := range map[string]func(*Quote){
		"register's value":     func(q *Quote) { v := q.PCRs[8]; v[0] ^= 1; q.PCRs[8] = v },
		"register missing":     func(q *Quote) { delete(q.PCRs, 8) },
		"register too many":    func(q *Quote) { q.PCRs[0] = Register{} },
		"message":              func(q *Quote) { q.Message[len(q.Message)-1] ^= 1 },
		"message, more behind": func(q *Quote) { q.Message = append(q.Message, 0) },
		"signature":            func(q *Quote) { q.Signature[len(q.Signature)-1] ^= 1 },
		"message too long":     func(q *Quote) { q.Message = make([]byte, tpmattest.MaxQuote+1) },
	} {
		x := fresh()
		change(x)
		refused(name, e.AK, x, nonce, pcrs)
	}
}

// Statements of a chip that are signed, but by a key that is not one, or are of
// another kind: the attacker has a signing key in software.
func TestAttackStatementsThatAreNotQuotes(t *testing.T) {
	w := newWorld(t)
	c, e := enrolled(t, w.chip.Path, EKECC)
	nonce := make([]byte, 32)
	pcrs := []int{8}
	honest, err := c.Quote(t.Context(), nonce, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	// A key of the right shape whose private half is ours, as after a fault in the
	// enrolment: the checks behind the signature must hold alone.
	own := newPolicyKey(t)
	public, err := tpmattest.ParseAK(e.AK)
	if err != nil {
		t.Fatal(err)
	}
	point, err := own.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point.Bytes()[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point.Bytes()[33:]}})
	ak := tpm2.Marshal(public)
	signed := func(change func(*tpm2.TPMSAttest)) *Quote {
		a, err := tpm2.Unmarshal[tpm2.TPMSAttest](honest.Message)
		if err != nil {
			t.Fatal(err)
		}
		name, err := tpmattest.QualifiedName(public)
		if err != nil {
			t.Fatal(err)
		}
		a.QualifiedSigner.Buffer = name
		change(a)
		q := *honest
		q.Message = tpm2.Marshal(a)
		digest := sha256.Sum256(q.Message)
		if q.Signature, err = ecdsa.SignASN1(rand.Reader, own, digest[:]); err != nil {
			t.Fatal(err)
		}
		return &q
	}
	if _, err := VerifyQuote(ak, signed(func(*tpm2.TPMSAttest) {}), nonce, pcrs); err != nil {
		t.Fatalf("the forgery is not good enough to try the checks: %v", err)
	}
	for name, change := range map[string]func(*tpm2.TPMSAttest){
		"magic":  func(a *tpm2.TPMSAttest) { a.Magic = 0 },
		"signer": func(a *tpm2.TPMSAttest) { a.QualifiedSigner.Buffer[5] ^= 1 },
		"nonce":  func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = nil },
		"kind": func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestTime
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestTime, &tpm2.TPMSTimeAttestInfo{})
		},
		"digest": func(a *tpm2.TPMSAttest) {
			info, err := a.Attested.Quote()
			if err != nil {
				t.Fatal(err)
			}
			info.PCRDigest.Buffer[0] ^= 1
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, info)
		},
	} {
		if _, err := VerifyQuote(ak, signed(change), nonce, pcrs); !errors.Is(err, ErrQuote) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzVerifyQuote(f *testing.F) {
	c, e := enrolled(f, tpmtest.Start(f).Path, EKECC)
	nonce := make([]byte, 32)
	q, err := c.Quote(f.Context(), nonce, []int{8})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q.Message, e.AK)
	f.Add([]byte{0xff, 'T', 'C', 'G'}, []byte{0, 0x23})
	f.Fuzz(func(t *testing.T, message, ak []byte) {
		x := *q
		x.Message = message
		if _, err := VerifyQuote(ak, &x, nonce, []int{8}); err == nil && (!bytes.Equal(message, q.Message) || !bytes.Equal(ak, e.AK)) {
			t.Error("a quote that nobody signed")
		}
	})
}
