package teequote

import (
	"bytes"
	"errors"
	"testing"
	"time"

	sevabi "github.com/google/go-sev-guest/abi"
	sevtest "github.com/google/go-sev-guest/testing"
	"github.com/google/go-sev-guest/verify/trust"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"
)

// now is a day on which the certificates of the published quote are valid.
var now = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// A quote of a real machine, published with go-tdx-guest, verifies to Intel's root.
func TestTDXQuoteOfARealMachine(t *testing.T) {
	c, err := Verify(Evidence{Provider: TDX + "\n", Report: tdxdata.RawQuote}, now)
	if err != nil {
		t.Fatal(err)
	}
	if c.Debug || c.Measurement == ([32]byte{}) {
		t.Errorf("%+v", c)
	}
	// A root that is not Intel's.
	if _, err := intelRoot([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")); err == nil {
		t.Error("another root was taken")
	}
	// The signature covers the header and the body.
	for i := 0; i < 48+584; i += 7 {
		b := bytes.Clone(tdxdata.RawQuote)
		b[i] ^= 1
		if _, err := Verify(Evidence{Provider: TDX, Report: b}, now); err == nil {
			t.Errorf("one bit of byte %d changed: accepted", i)
		}
	}
}

// machine is a processor of the tests, with a root of its own.
func machine(t *testing.T) (signer *sevtest.AmdSigner, certs []byte) {
	t.Helper()
	signer, err := sevtest.DefaultTestOnlyCertChain(sevtest.GetProductName(), now)
	if err != nil {
		t.Fatal(err)
	}
	if certs, err = signer.CertTableBytes(); err != nil {
		t.Fatal(err)
	}
	root := trust.AMDRootCertsProduct(sevtest.GetProductLine())
	root.ProductCerts = &trust.ProductCerts{Ark: signer.Ark, Ask: signer.Ask, Asvk: signer.Asvk}
	sevRoots = map[string][]*trust.AMDRootCerts{sevtest.GetProductLine(): {root}}
	t.Cleanup(func() { sevRoots = nil })
	return signer, certs
}

func report(t *testing.T, signer *sevtest.AmdSigner, change func([]byte)) []byte {
	t.Helper()
	raw := sevtest.TestRawReport([64]byte{1, 2, 3})
	b := raw[:sevabi.ReportSize]
	change(b)
	r, s, err := signer.Sign(sevabi.SignedComponent(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := sevabi.SetSignature(r, s, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSEVReport(t *testing.T) {
	signer, certs := machine(t)
	b := report(t, signer, func([]byte) {})
	c, err := Verify(Evidence{Provider: SEV, Report: b, Certs: certs}, now)
	if err != nil {
		t.Fatal(err)
	}
	if c.Data != ([64]byte{1, 2, 3}) || !c.Debug {
		t.Errorf("%+v", c)
	}
	other, err := Verify(Evidence{Provider: SEV, Report: report(t, signer, func(b []byte) { b[0x90] = 1 }), Certs: certs}, now)
	if err != nil || other.Measurement == c.Measurement {
		t.Errorf("another measurement: %v", err)
	}
	for i := 0; i < len(sevabi.SignedComponent(b)); i += 5 {
		x := bytes.Clone(b)
		x[i] ^= 1
		if _, err := Verify(Evidence{Provider: SEV, Report: x, Certs: certs}, now); err == nil {
			t.Errorf("one bit of byte %d changed: accepted", i)
		}
	}
	if _, err := Verify(Evidence{Provider: SEV, Report: b}, now); err == nil {
		t.Error("accepted without certificates")
	}
	if _, err := Verify(Evidence{Provider: SEV, Report: report(t, signer, func(b []byte) { b[0x30] = 1 }), Certs: certs}, now); err == nil {
		t.Error("a report of a lower privilege level")
	}
	sevRoots = nil
	if _, err := Verify(Evidence{Provider: SEV, Report: b, Certs: certs}, now); err == nil {
		t.Error("a root that is not AMD's")
	}
}

func TestUnknownProviders(t *testing.T) {
	for _, p := range []string{"", "fake", "arm_cca_guest"} {
		if _, err := Verify(Evidence{Provider: p}, now); !errors.Is(err, ErrProvider) {
			t.Errorf("%q: %v", p, err)
		}
	}
	if _, err := Verify(Evidence{Provider: TDX, Report: make([]byte, MaxReport+1)}, now); err == nil {
		t.Error("a report of any size")
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(false, tdxdata.RawQuote, []byte(nil))
	raw := sevtest.TestRawReport([64]byte{})
	f.Add(true, raw[:sevabi.ReportSize], []byte{1})
	f.Fuzz(func(t *testing.T, snp bool, report, certs []byte) {
		e := Evidence{Provider: TDX, Report: report, Certs: certs}
		if snp {
			e.Provider = SEV
		}
		if _, err := Verify(e, now); err == nil && (snp || !bytes.Equal(report[:min(len(report), 632)], tdxdata.RawQuote[:632])) {
			t.Error("a report that nobody signed")
		}
	})
}
