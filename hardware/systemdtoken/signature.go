package systemdtoken

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// MaxSignatures caps a signature file, in bytes.
const MaxSignatures = 1 << 20

// Signatures is the content of a .pcrsig file: which register values a key has
// signed, as systemd-measure writes it.
type Signatures struct {
	entries []entry
}

type entry struct {
	bank        tpm2.TPMIAlgHash
	pcrs        []int
	fingerprint []byte // SHA-256 of the key, PKCS #1 DER
	policy      []byte // PolicyPCR digest
	signature   []byte // RSASSA, SHA-256, over the digest
}

// ParseSignatures reads a .pcrsig file. Banks that are not known are left out.
func ParseSignatures(b []byte) (*Signatures, error) {
	if len(b) > MaxSignatures {
		return nil, fmt.Errorf("signatures: %d bytes are more than %d", len(b), MaxSignatures)
	}
	var j map[string][]struct {
		PCRs        []int  `json:"pcrs"`
		Fingerprint string `json:"pkfp"`
		Policy      string `json:"pol"`
		Signature   []byte `json:"sig"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&j); err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("signatures: something follows the object")
	}
	s := &Signatures{}
	for name, list := range j {
		bank, ok := banks[name]
		if !ok {
			continue
		}
		for _, x := range list {
			e := entry{bank: bank, pcrs: slices.Sorted(slices.Values(x.PCRs)), signature: x.Signature}
			var err1, err2 error
			e.fingerprint, err1 = hex.DecodeString(x.Fingerprint)
			e.policy, err2 = hex.DecodeString(x.Policy)
			if err1 != nil || err2 != nil || len(e.fingerprint) != 32 || len(e.policy) != 32 || len(e.signature) == 0 || len(e.signature) > maxPart {
				return nil, fmt.Errorf("signatures: an entry of bank %s makes no sense", name)
			}
			s.entries = append(s.entries, e)
		}
	}
	return s, nil
}

// find returns the signature over a policy, nil where there is none.
func (s *Signatures) find(bank tpm2.TPMIAlgHash, pcrs []int, fingerprint, policy []byte) []byte {
	if s == nil {
		return nil
	}
	sorted := slices.Sorted(slices.Values(pcrs))
	for _, e := range s.entries {
		if e.bank == bank && slices.Equal(e.pcrs, sorted) && bytes.Equal(e.fingerprint, fingerprint) && bytes.Equal(e.policy, policy) {
			return e.signature
		}
	}
	return nil
}

// signer is a policy key: RSA, as systemd-measure uses.
type signer struct {
	public      tpm2.TPMTPublic
	fingerprint []byte
}

// parseSigner reads a public key in PEM and gives it the shape in which systemd
// loads it: its name is part of the policy.
func parseSigner(text []byte) (*signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, bad("policy key is not PEM")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, bad("policy key: %w", err)
	}
	pub, ok := k.(*rsa.PublicKey)
	if !ok {
		return nil, unsupported("policy key %T", k)
	}
	if bits := pub.N.BitLen(); bits < 2048 || bits > 4096 || bits%8 != 0 {
		return nil, unsupported("policy key of %d bits", bits)
	}
	f := sha256.Sum256(x509.MarshalPKCS1PublicKey(pub))
	return &signer{fingerprint: f[:], public: tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{Decrypt: true, SignEncrypt: true, UserWithAuth: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMKeyBits(pub.N.BitLen()), Exponent: uint32(pub.E)}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: pub.N.FillBytes(make([]byte, pub.N.BitLen()/8))}),
	}}, nil
}

func rsaSignature(b []byte) tpm2.TPMTSignature {
	return tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
		&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: b}})}
}
