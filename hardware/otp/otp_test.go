package otp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"portcullis/images/card"
)

func public(t testing.TB, k any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func key(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, Bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyAsTheBootROMKnowsIt(t *testing.T) {
	k := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537}
	k.N.Add(k.N, big.NewInt(0x0201))
	b := Encode(k)
	if len(b) != 264 || b[0] != 1 || b[1] != 2 || b[255] != 0x80 || !bytes.Equal(b[256:], []byte{1, 0, 1, 0, 0, 0, 0, 0}) {
		t.Errorf("%x", b)
	}
	d := sha256.Sum256(b)
	if Fingerprint(k) != hex.EncodeToString(d[:]) || !strings.Contains(Confirmation(k), Fingerprint(k)[:8]) {
		t.Error(Fingerprint(k), Confirmation(k))
	}
}

func TestKeysThatTheROMDoesNotTake(t *testing.T) {
	good := key(t)
	if k, err := ParseKey(public(t, &good.PublicKey)); err != nil || !k.Equal(&good.PublicKey) {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"3072 bits": public(t, &long.PublicKey), "elliptic": public(t, &curve.PublicKey), "no PEM": []byte("x"), "empty": nil,
		"exponent 3":  public(t, &rsa.PublicKey{N: good.N, E: 3}),
		"private key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		"too large":   append(bytes.Repeat([]byte("#\n"), maxPEM), public(t, &good.PublicKey)...),
	} {
		if _, err := ParseKey(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOnlyTheBurningFilesBurn(t *testing.T) {
	k := key(t)
	for _, model := range []string{card.ModelPi4, card.ModelPi5} {
		files, err := Prepare(&k.PublicKey, model)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range files {
			burns := bytes.Contains(b, []byte("program_pubkey")) || bytes.Contains(b, []byte("revoke_devkey"))
			if burns != (name == FileBurnCfg) {
				t.Errorf("%s %s: burns %v", model, name, burns)
			}
			if strings.HasSuffix(name, "boot.conf") && !bytes.Contains(b, []byte("\nSIGNED_BOOT=1\n")) {
				t.Errorf("%s %s:\n%s", model, name, b)
			}
		}
		if revokes := bytes.Contains(files[FileBurnCfg], []byte("revoke_devkey=1\n")); revokes != (model == card.ModelPi4) {
			t.Errorf("%s: revokes the development key: %v", model, revokes)
		}
		if !bytes.Contains(files[FileReadme], []byte(Fingerprint(&k.PublicKey))) || !bytes.Contains(files[FileReadme], []byte("IRREVERSIBLE")) {
			t.Errorf("%s", files[FileReadme])
		}
		if strings.TrimSpace(string(files[FileHash])) != Fingerprint(&k.PublicKey) || len(files[FileKey]) != 264 {
			t.Errorf("%s", files[FileHash])
		}
	}
	if _, err := Prepare(&k.PublicKey, card.ModelQEMU); err == nil {
		t.Error("an emulated machine has OTP")
	}
}

func FuzzKey(f *testing.F) {
	k := key(f)
	f.Add(public(f, &k.PublicKey))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := ParseKey(b); err == nil && len(Encode(k)) != 264 {
			t.Error("a key of another size")
		}
	})
}
