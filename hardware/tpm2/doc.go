// Package tpm2 is the root of trust in a TPM 2.0 behind /dev/tpmrm0: it keeps the
// card's key under a policy that the release's policy key signs, counts accepted
// releases, measures, quotes and signs. It speaks to the chip through go-tpm and
// needs neither a daemon nor a library of the system.
//
// What is sealed is bound to PolicyAuthorize (any policy that the policy key signed
// for this platform: registers and counter ≤ sequence, see package tpmpolicy),
// then to a second counter that Forget raises. The secret crosses the bus only
// encrypted, in sessions salted to the chip's storage key, whose name the blob
// remembers: a key that something on the bus puts in its place is refused before
// anything is encrypted to it. The first Seal trusts the key that it meets.
package tpm2

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Default handles.
const (
	DefaultSRK     = 0x81000001 // storage key, shared with systemd and others
	DefaultAK      = 0x81008001 // attestation key
	DefaultCounter = 0x01800077 // counter of accepted releases
)

// DefaultTimeout is how long the chip may take for one command. Part 1 knows no
// limit; making an RSA key takes tens of seconds on slow chips.
const DefaultTimeout = 2 * time.Minute

// DefaultPath is the kernel's TPM with a resource manager.
const DefaultPath = "/dev/tpmrm0"

// Config says under which policy a TPM works. The zero values of handles and
// Timeout mean the defaults.
type Config struct {
	PolicyKey *ecdsa.PublicKey   // P-256; Seal and Unseal need it
	Platform  tpmpolicy.Platform // who measured; Seal and Unseal need it
	Policy    *tpmpolicy.File    // policy.json of the running slot; Seal and Unseal need it
	// Unmeasured permits to seal while a register of the policy is empty. The key
	// is then bound to the chip only; whoever sets this says so in the posture.
	Unmeasured bool

	SRK, AK    uint32        // persistent handles
	NVIndex    uint32        // counter of accepted releases
	Revocation uint32        // counter that Forget raises, NVIndex+1 by default
	Timeout    time.Duration // per command
}

// TPM is an open TPM 2.0. It is not safe for concurrent use.
type TPM struct {
	link *link
	cfg  Config
}

var (
	_ hardware.Root   = (*TPM)(nil)
	_ hardware.Capper = (*TPM)(nil)
)

// Open opens a TPM: a character device, or the UNIX socket of a TPM emulator.
// Reasons: root-absent, root-busy.
func Open(path string, cfg Config) (*TPM, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c, err := dial(path, cfg.Timeout)
	if err != nil {
		return nil, err
	}
	return New(c, cfg)
}

// New takes over an open transport.
func New(c transport.TPMCloser, cfg Config) (*TPM, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &TPM{link: newLink(c, cfg.Timeout), cfg: cfg}, nil
}

// Close gives the chip back.
func (t *TPM) Close() error { return t.link.close() }

func (c *Config) complete() error {
	if c.SRK == 0 {
		c.SRK = DefaultSRK
	}
	if c.AK == 0 {
		c.AK = DefaultAK
	}
	if c.NVIndex == 0 {
		c.NVIndex = DefaultCounter
	}
	if c.Revocation == 0 {
		c.Revocation = c.NVIndex + 1
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	switch {
	case !persistent(c.SRK):
		return fmt.Errorf("storage key %#x is not a persistent handle of the owner (0x81000000 to 0x817fffff)", c.SRK)
	case !persistent(c.AK):
		return fmt.Errorf("attestation key %#x is not a persistent handle of the owner (0x81000000 to 0x817fffff)", c.AK)
	case c.AK == c.SRK || c.AK == DefaultSRK:
		return fmt.Errorf("attestation key %#x: that is the storage key's handle", c.AK)
	case c.NVIndex>>24 != 0x01 || c.Revocation>>24 != 0x01 || c.NVIndex == c.Revocation:
		return fmt.Errorf("counters %#x and %#x are not two NV indices", c.NVIndex, c.Revocation)
	case c.Timeout < 0:
		return errors.New("timeout is negative")
	}
	return nil
}

func persistent(h uint32) bool { return h >= 0x81000000 && h <= 0x817fffff }

// do runs one public operation: commands inside are bounded by ctx and the
// timeout, errors leave with a reason, and an answer that go-tpm cannot take apart
// is an error even where it would panic.
func (t *TPM) do(ctx context.Context, what string, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("%s: the chip's answer makes no sense: %v", what, r)}
		}
	}()
	t.link.ctx = ctx
	defer func() { t.link.ctx = nil }()
	return reasoned(what, f())
}

// Identify asks for manufacturer, vendor string and firmware version.
func (t *TPM) Identify(ctx context.Context) (hardware.Identity, error) {
	id := hardware.Identity{Backend: hardware.BackendTPM2}
	err := t.do(ctx, "identify", func() error {
		p, err := t.properties(tpm2.TPMPTFamilyIndicator, 64)
		if err != nil {
			return err
		}
		if family := text(p[tpm2.TPMPTFamilyIndicator]); family != "2.0" {
			return fmt.Errorf("family %q is not a TPM 2.0", family)
		}
		id.Manufacturer = text(p[tpm2.TPMPTManufacturer])
		id.Model = text(p[tpm2.TPMPTVendorString1], p[tpm2.TPMPTVendorString2], p[tpm2.TPMPTVendorString3], p[tpm2.TPMPTVendorString4])
		v1, v2 := p[tpm2.TPMPTFirmwareVersion1], p[tpm2.TPMPTFirmwareVersion2]
		id.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xffff, v2>>16, v2&0xffff)
		return nil
	})
	return id, err
}

// properties reads fixed and variable properties from first on.
func (t *TPM) properties(first tpm2.TPMPT, count uint32) (map[tpm2.TPMPT]uint32, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(first), PropertyCount: count}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, err
	}
	m := make(map[tpm2.TPMPT]uint32, len(list.TPMProperty))
	for _, p := range list.TPMProperty {
		m[p.Property] = p.Value
	}
	return m, nil
}

// text reads properties that hold four characters each.
func text(values ...uint32) string {
	var b []byte
	for _, v := range values {
		for shift := 24; shift >= 0; shift -= 8 {
			if c := byte(v >> shift); c >= ' ' && c <= '~' {
				b = append(b, c)
			}
		}
	}
	return string(bytes.TrimSpace(b))
}

// Random returns n bytes of the chip's generator, 1 to 512. They cross the bus in
// the clear: mix them with the kernel's.
func (t *TPM) Random(ctx context.Context, n int) ([]byte, error) {
	if n < 1 || n > 512 {
		return nil, fmt.Errorf("random: %d bytes are not 1 to 512", n)
	}
	out := make([]byte, 0, n)
	err := t.do(ctx, "random", func() error {
		for empty := 0; len(out) < n; {
			r, err := tpm2.GetRandom{BytesRequested: uint16(min(n-len(out), 32))}.Execute(t.link)
			if err != nil {
				return err
			}
			got := r.RandomBytes.Buffer
			if len(got) == 0 {
				if empty++; empty > 3 {
					return errors.New("the chip gives no random bytes")
				}
				continue
			}
			out = append(out, got[:min(len(got), n-len(out))]...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Tampers returns a closed channel: a TPM has no detectors.
func (t *TPM) Tampers(context.Context) (<-chan hardware.Tamper, error) {
	c := make(chan hardware.Tamper)
	close(c)
	return c, nil
}

// Indicate does nothing: a TPM has no light.
func (t *TPM) Indicate(context.Context, hardware.Indication) error { return nil }
