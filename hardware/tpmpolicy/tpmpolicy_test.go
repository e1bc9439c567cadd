package tpmpolicy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func testKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testBranch() Branch {
	return Branch{Platform: PlatformSelf, Sequence: 7, NVIndex: 0x01800077,
		PCRs: Predict(nil, SelfEvents(sha256.Sum256([]byte("boot")), "portcullis.pi=1")...)}
}

func testFile(t testing.TB, key *ecdsa.PrivateKey) *File {
	t.Helper()
	f := &File{Version: FileVersion, Sequence: 7}
	for _, p := range []Platform{PlatformSelf, PlatformEFI} {
		b := testBranch()
		b.Platform = p
		s, err := Sign(key, b)
		if err != nil {
			t.Fatal(err)
		}
		f.Branches = append(f.Branches, s)
	}
	return f
}

// go-tpm's own calculator arrives at the same digests by another way.
func TestDigestsEqualGoTPMsCalculator(t *testing.T) {
	key := testKey(t, elliptic.P256())
	b := testBranch()
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		t.Fatal(err)
	}
	composite := sha256.New()
	for _, i := range []int{8, 9, 11} {
		v := b.PCRs[i]
		composite.Write(v[:])
	}
	pcr := tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: composite.Sum(nil)}, Pcrs: tpm2.TPMLPCRSelection{
		PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(8, 9, 11)}}}}
	if err := pcr.Update(calc); err != nil {
		t.Fatal(err)
	}
	if got := PCRPolicy(b.PCRs); !bytes.Equal(got[:], calc.Hash().Digest) {
		t.Errorf("PolicyPCR: %x, want %x", got, calc.Hash().Digest)
	}
	public := tpm2.TPMSNVPublic{NVIndex: 0x01800077, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{OwnerWrite: true, AuthWrite: true, NT: tpm2.TPMNTCounter, OwnerRead: true, AuthRead: true, NoDA: true, Written: true}}
	name, err := tpm2.NVName(&public)
	if err != nil {
		t.Fatal(err)
	}
	if got := CounterName(0x01800077); !bytes.Equal(got, name.Buffer) {
		t.Errorf("counter's name %x, want %x", got, name.Buffer)
	}
	nv := tpm2.PolicyNV{NVIndex: tpm2.NamedHandle{Handle: 0x01800077, Name: *name}, Operation: tpm2.TPMEOUnsignedLE,
		OperandB: tpm2.TPM2BOperand{Buffer: []byte{0, 0, 0, 0, 0, 0, 0, 7}}}
	if err := nv.Update(calc); err != nil {
		t.Fatal(err)
	}
	got, err := b.Digest()
	if err != nil || !bytes.Equal(got[:], calc.Hash().Digest) {
		t.Errorf("%v: %x, want %x", err, got, calc.Hash().Digest)
	}

	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	object := tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})}
	keyName, err := tpm2.ObjectName(&object)
	if err != nil {
		t.Fatal(err)
	}
	calc.Reset()
	if err := (tpm2.PolicyAuthorize{KeySign: *keyName, PolicyRef: tpm2.TPM2BDigest{Buffer: Ref(PlatformSelf)}}).Update(calc); err != nil {
		t.Fatal(err)
	}
	seal, err := SealPolicy(&key.PublicKey, PlatformSelf)
	if err != nil || !bytes.Equal(seal[:], calc.Hash().Digest) {
		t.Errorf("%v: %x, want %x", err, seal, calc.Hash().Digest)
	}
}

func TestPlatformsNeverShareAPolicy(t *testing.T) {
	key := testKey(t, elliptic.P256())
	self, err := SealPolicy(&key.PublicKey, PlatformSelf)
	if err != nil {
		t.Fatal(err)
	}
	efi, err := SealPolicy(&key.PublicKey, PlatformEFI)
	if err != nil {
		t.Fatal(err)
	}
	if self == efi {
		t.Error("what is sealed on one opens on the other")
	}
	s, err := Sign(key, testBranch())
	if err != nil {
		t.Fatal(err)
	}
	s.Platform = PlatformEFI
	if err := s.Verify(&key.PublicKey); !errors.Is(err, ErrSignature) {
		t.Errorf("a signature for one platform holds on the other: %v", err)
	}
}

func TestAttackEditedPolicyIsNotSigned(t *testing.T) {
	key := testKey(t, elliptic.P256())
	for name, edit := range map[string]func(*Signed){
		"register's value": func(s *Signed) { v := s.PCRs[9]; v[31] ^= 1; s.PCRs[9] = v },
		"register left out": func(s *Signed) {
			delete(s.PCRs, 9)
		},
		"register added": func(s *Signed) { s.PCRs[0] = [32]byte{1} },
		"sequence":       func(s *Signed) { s.Sequence++ },
		"counter":        func(s *Signed) { s.NVIndex++ },
		"signature":      func(s *Signed) { s.Signature[len(s.Signature)-1] ^= 1 },
	} {
		s, err := Sign(key, testBranch())
		if err != nil {
			t.Fatal(err)
		}
		edit(&s)
		if err := s.Verify(&key.PublicKey); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := Sign(key, testBranch())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(&testKey(t, elliptic.P256()).PublicKey); !errors.Is(err, ErrSignature) {
		t.Errorf("another key: %v", err)
	}
}

func TestSameInputsSameSignature(t *testing.T) {
	key := testKey(t, elliptic.P256())
	a, err := testFile(t, key).Encode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := testFile(t, key).Encode()
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("%v: two files from the same inputs differ", err)
	}
	f, err := Parse(a)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []Platform{PlatformSelf, PlatformEFI} {
		if err := f.Branch(p).Verify(&key.PublicKey); err != nil {
			t.Error(err)
		}
	}
	if f.Branch("other") != nil {
		t.Error("a branch for a platform that is not there")
	}
}

func TestBranchRefusals(t *testing.T) {
	key := testKey(t, elliptic.P256())
	for name, change := range map[string]func(*Branch){
		"platform":           func(b *Branch) { b.Platform = "uboot" },
		"no sequence":        func(b *Branch) { b.Sequence = 0 },
		"sequence too large": func(b *Branch) { b.Sequence = MaxSequence + 1 },
		"no NV index":        func(b *Branch) { b.NVIndex = 0x81000001 },
		"no register":        func(b *Branch) { b.PCRs = nil },
		"register 24":        func(b *Branch) { b.PCRs[24] = [32]byte{1} },
		"register -1":        func(b *Branch) { b.PCRs[-1] = [32]byte{1} },
		"zero register":      func(b *Branch) { b.PCRs[8] = [32]byte{} },
		"register of ones":   func(b *Branch) { b.PCRs[8] = [32]byte(bytes.Repeat([]byte{0xff}, 32)) },
	} {
		b := testBranch()
		change(&b)
		if _, err := Sign(key, b); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := Sign(testKey(t, elliptic.P384()), testBranch()); err == nil {
		t.Error("signed with a P-384 key, which the chip would not take")
	}
}

func TestFileRefusals(t *testing.T) {
	good, err := testFile(t, testKey(t, elliptic.P256())).Encode()
	if err != nil {
		t.Fatal(err)
	}
	text := string(good)
	for name, b := range map[string]string{
		"empty":                "",
		"unknown field":        strings.Replace(text, `"version"`, `"more": 1, "version"`, 1),
		"other version":        strings.Replace(text, `"version": 1`, `"version": 2`, 1),
		"something behind":     text + "{}",
		"too large":            text + strings.Repeat(" ", MaxFile),
		"platform twice":       strings.Replace(text, `"efi"`, `"self"`, 1),
		"sequences differ":     strings.Replace(text, `"sequence": 7`, `"sequence": 8`, 1),
		"register with zero":   strings.Replace(text, `"8":`, `"08":`, 1),
		"register not decimal": strings.Replace(text, `"8":`, `"x":`, 1),
	} {
		if b == text {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := Parse([]byte(b)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	good, err := testFile(f, testKey(f, elliptic.P256())).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"branches":[{"pcrs":{"0":""}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		again, err := p.Encode()
		if err != nil {
			// Only the length may stand in the way: what is written is indented.
			if !strings.Contains(err.Error(), "more than") {
				t.Fatal(err)
			}
			return
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("what was written cannot be read: %v", err)
		}
		for i := range p.Branches {
			if _, err := p.Branches[i].Digest(); err != nil {
				t.Errorf("a branch that was read has no digest: %v", err)
			}
		}
	})
}
