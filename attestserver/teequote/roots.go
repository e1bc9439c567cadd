package teequote

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	sevabi "github.com/google/go-sev-guest/abi"
	sevpb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify/trust"
)

// The libraries write a line to standard output, where the events go, when they are
// left to their own roots, and for a report without a key: a hostile machine could
// have them write. So roots and keys are found here first.

// intelRootDigest is SHA-256 of the certificate "Intel SGX Root CA", valid until
// 2049, as Intel publishes it (Intel_SGX_Provisioning_Certification_RootCA.cer).
const intelRootDigest = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

// intelRoot returns Intel's root, which a quote brings along as the third of its certificates.
func intelRoot(chain []byte) (*x509.CertPool, error) {
	for range 3 {
		var block *pem.Block
		if block, chain = pem.Decode(chain); block == nil {
			break
		}
		if sum := sha256.Sum256(block.Bytes); hex.EncodeToString(sum[:]) != intelRootDigest {
			continue
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("root: %w", err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(root)
		return pool, nil
	}
	return nil, errors.New("the certificates do not lead to Intel's root")
}

// sevRoots are those that AMD has published, built into go-sev-guest; nil means
// them. Tests put a root of their own here.
var sevRoots map[string][]*trust.AMDRootCerts

// amdChain reads the certificate table (GHCB Specification 2.03, 4.1.8.1), which must
// hold the key that signs.
func amdChain(table []byte) (*sevpb.CertificateChain, error) {
	t := new(sevabi.CertTable)
	if err := t.Unmarshal(table); err != nil {
		return nil, err
	}
	for _, guid := range []string{sevabi.VcekGUID, sevabi.VlekGUID} {
		if key, err := t.GetByGUIDString(guid); err == nil && len(key) > 0 {
			return t.Proto(), nil
		}
	}
	return nil, errors.New("the host has given no certificate of the key that signs")
}
