package tpm2

import (
	"crypto/ecdsa"
	"encoding/asn1"
	"fmt"
	"math/big"

	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

// authorize shows the chip the signature over the policy that the session has
// collected so far.
func (t *TPM) authorize(p *PolicyRun, branch *tpmpolicy.Signed) error {
	public, err := policyPublic(t.cfg.PolicyKey)
	if err != nil {
		return err
	}
	signature, err := ecdsaSignature(branch.Signature)
	if err != nil {
		return refuse(ReasonPolicyFile, "%w", err)
	}
	approved, err := branch.Digest()
	if err != nil {
		return err
	}
	return p.Authorize(public, *signature, approved[:], tpmpolicy.Ref(branch.Platform))
}

// policyPublic is the object that tpmpolicy.KeyName is the name of.
func policyPublic(pub *ecdsa.PublicKey) (tpm2.TPMTPublic, error) {
	k, err := pub.ECDH()
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	b := k.Bytes()
	if len(b) != 65 {
		return tpm2.TPMTPublic{}, fmt.Errorf("policy key is not on P-256")
	}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: b[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: b[33:]}}),
	}, nil
}

// ecdsaSignature turns ASN.1 into what a chip takes.
func ecdsaSignature(der []byte) (*tpm2.TPMTSignature, error) {
	var s struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &s)
	if err != nil || len(rest) > 0 || s.R.Sign() <= 0 || s.S.Sign() <= 0 || s.R.BitLen() > 256 || s.S.BitLen() > 256 {
		return nil, fmt.Errorf("signature is not ECDSA P-256 in ASN.1")
	}
	return &tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash:       tpm2.TPMAlgSHA256,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: s.R.FillBytes(make([]byte, 32))},
		SignatureS: tpm2.TPM2BECCParameter{Buffer: s.S.FillBytes(make([]byte, 32))},
	})}, nil
}
