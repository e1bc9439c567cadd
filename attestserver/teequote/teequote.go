// Package teequote verifies the report of a confidential virtual machine: Intel TDX
// and AMD SEV-SNP, as the kernel's configfs-tsm hands it out. Package expect is its
// caller. It opens no connection: a report's signature is followed to the maker's
// root by the certificates beside it. What only the makers' services know (revoked
// keys, the newest microcode) is not judged.
//
// Unverified on hardware: no machine of either kind has been met.
package teequote

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	sevabi "github.com/google/go-sev-guest/abi"
	sevpb "github.com/google/go-sev-guest/proto/sevsnp"
	sevverify "github.com/google/go-sev-guest/verify"
	tdxabi "github.com/google/go-tdx-guest/abi"
	tdxpb "github.com/google/go-tdx-guest/proto/tdx"
	tdxverify "github.com/google/go-tdx-guest/verify"
)

// Providers as the kernel names them in the attribute "provider".
const (
	TDX = "tdx_guest"
	SEV = "sev_guest"
)

// Limits, in bytes.
const (
	MaxReport = 32 << 10
	MaxCerts  = 32 << 10
)

// Evidence is what the kernel handed out.
type Evidence struct {
	Provider string
	Report   []byte // outblob
	Certs    []byte // auxblob; SEV-SNP: the certificate table
}

// Claims are what a verified report says.
type Claims struct {
	Data        [64]byte // what the machine had signed
	Measurement [32]byte // SHA-256 of all that was measured at launch and since
	Debug       bool     // the host can read the machine's memory
}

// ErrProvider is a provider whose reports cannot be verified here.
var ErrProvider = errors.New("no confidential machine that is known")

// Verify checks the signature to the maker's root, whose certificates must be valid
// at now, and returns what was signed. It stands any bytes.
func Verify(e Evidence, now time.Time) (c *Claims, err error) {
	defer func() {
		if r := recover(); r != nil {
			c, err = nil, fmt.Errorf("report: %v", r)
		}
	}()
	if len(e.Report) > MaxReport || len(e.Certs) > MaxCerts {
		return nil, fmt.Errorf("a report of %d bytes with %d bytes of certificates", len(e.Report), len(e.Certs))
	}
	verify, ok := verifiers[strings.TrimSuffix(e.Provider, "\n")]
	if !ok {
		return nil, fmt.Errorf("%w: %.32q", ErrProvider, e.Provider)
	}
	return verify(e, now)
}

var verifiers = map[string]func(Evidence, time.Time) (*Claims, error){TDX: tdx, SEV: sev}

// tdx verifies a quote of version 4 (Intel TDX DCAP Quoting Library API, 3).
func tdx(e Evidence, now time.Time) (*Claims, error) {
	parsed, err := tdxabi.QuoteToProto(e.Report)
	if err != nil {
		return nil, fmt.Errorf("TDX: %w", err)
	}
	quote, ok := parsed.(*tdxpb.QuoteV4)
	if !ok {
		return nil, fmt.Errorf("TDX: a quote of type %T", parsed)
	}
	root, err := intelRoot(quote.GetSignedData().GetCertificationData().GetQeReportCertificationData().GetPckCertificateChainData().GetPckCertChain())
	if err != nil {
		return nil, fmt.Errorf("TDX: %w", err)
	}
	if err := tdxverify.TdxQuote(quote, &tdxverify.Options{TrustedRoots: root, Now: now}); err != nil {
		return nil, fmt.Errorf("TDX: %w", err)
	}
	body := quote.GetTdQuoteBody()
	attributes := body.GetTdAttributes()
	if len(body.GetReportData()) != 64 || len(attributes) != 8 {
		return nil, errors.New("TDX: a body of another size")
	}
	fields := [][]byte{body.GetMrSeam(), body.GetMrTd(), body.GetMrConfigId(), body.GetMrOwner(), body.GetMrOwnerConfig(), attributes}
	return &Claims{Data: [64]byte(body.GetReportData()), Measurement: digest(TDX, append(fields, body.GetRtmrs()...)), Debug: attributes[0]&1 != 0}, nil
}

// sev verifies a report (SEV-SNP Firmware ABI 1.55, table 23).
func sev(e Evidence, now time.Time) (*Claims, error) {
	r, err := sevabi.ReportToProto(e.Report)
	if err != nil {
		return nil, fmt.Errorf("SEV-SNP: %w", err)
	}
	chain, err := amdChain(e.Certs)
	if err != nil {
		return nil, fmt.Errorf("SEV-SNP: %w", err)
	}
	a := &sevpb.Attestation{Report: r, CertificateChain: chain}
	if err := sevverify.SnpAttestation(a, &sevverify.Options{DisableCertFetching: true, TrustedRoots: sevRoots, Now: now}); err != nil {
		return nil, fmt.Errorf("SEV-SNP: %w", err)
	}
	policy, err := sevabi.ParseSnpPolicy(r.GetPolicy())
	if err != nil {
		return nil, fmt.Errorf("SEV-SNP: %w", err)
	}
	if r.GetVmpl() != 0 {
		return nil, fmt.Errorf("SEV-SNP: the report is of privilege level %d, the kernel has 0", r.GetVmpl())
	}
	fields := [][]byte{r.GetMeasurement(), r.GetHostData(), r.GetFamilyId(), r.GetImageId(), r.GetIdKeyDigest(), r.GetAuthorKeyDigest()}
	return &Claims{Data: [64]byte(r.GetReportData()), Measurement: digest(SEV, fields), Debug: policy.Debug}, nil
}

func digest(provider string, fields [][]byte) [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", provider, len(fields))
	for _, f := range fields {
		fmt.Fprintf(h, "%x\n", f)
	}
	return [32]byte(h.Sum(nil))
}
