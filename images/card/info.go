package card

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
)

// InfoPath is where the initramfs keeps Info.
const InfoPath = "etc/portcullis/pi.json"

// Models and profiles.
const (
	ModelPi4  = "pi4"
	ModelPi5  = "pi5"
	ModelQEMU = "qemu"

	ProfileDev     = "dev"
	ProfileRelease = "release"
)

// MaxInfo caps an encoded Info, in bytes.
const MaxInfo = 16 << 10

// Info is what an initramfs knows of its own image: whom it trusts and which release it is.
type Info struct {
	Schema      string   `json:"schema"` // portcullis/pi-info/v1
	Model       string   `json:"model"`
	Profile     string   `json:"profile"`
	Sequence    uint64   `json:"sequence"`     // of the release, 1 to 1<<31
	ReleaseKeys [][]byte `json:"release_keys"` // Ed25519, raw: who signs images and updates
	Threshold   int      `json:"threshold"`
	PolicyKey   []byte   `json:"policy_key"` // ECDSA P-256, PKIX DER: who signs TPM policies
	NVIndex     uint32   `json:"nv_index"`   // rollback counter
	LabChannel  bool     `json:"lab_channel,omitempty"`
	// Root is the chip that first boot enrols, RootTPM2 and so on; empty: RootAuto.
	Root string `json:"root,omitempty"`
}

// What an image demands of the chip that keeps the key. The names but RootAuto are
// those of hardware.Backend.
const (
	RootAuto     = "auto" // what there is: both, else the TPM, else the Zymbit module
	RootTPM2     = "tpm2"
	RootZymbit   = "zymbit"
	RootCombined = "combined"
)

// RootKnown says that an image can demand r.
func RootKnown(r string) bool {
	return r == RootAuto || r == RootTPM2 || r == RootZymbit || r == RootCombined
}

// Demand is Root with its default filled in.
func (i *Info) Demand() string {
	if i.Root == "" {
		return RootAuto
	}
	return i.Root
}

// InfoSchema is the only schema.
const InfoSchema = "portcullis/pi-info/v1"

// ParseInfo reads and checks an Info; what it returns is valid.
func ParseInfo(b []byte) (*Info, error) {
	if len(b) > MaxInfo {
		return nil, fmt.Errorf("%s: %d bytes are more than %d", InfoPath, len(b), MaxInfo)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var i Info
	if err := d.Decode(&i); err != nil {
		return nil, fmt.Errorf("%s: %w", InfoPath, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: something follows the object", InfoPath)
	}
	return &i, i.check()
}

// Encode returns the JSON of a valid Info.
func (i *Info) Encode() ([]byte, error) {
	if err := i.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(i, "", "  ")
	return append(b, '\n'), err
}

// Policy returns the key that signs TPM policies.
func (i *Info) Policy() (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(i.PolicyKey)
	if err != nil {
		return nil, fmt.Errorf("policy_key: %w", err)
	}
	p, ok := k.(*ecdsa.PublicKey)
	if !ok || p.Curve != elliptic.P256() {
		return nil, fmt.Errorf("policy_key is not an ECDSA P-256 key")
	}
	return p, nil
}

func (i *Info) check() error {
	switch {
	case i.Schema != InfoSchema:
		return fmt.Errorf("%s: schema %q is not %q", InfoPath, i.Schema, InfoSchema)
	case i.Model != ModelPi4 && i.Model != ModelPi5 && i.Model != ModelQEMU:
		return fmt.Errorf("%s: model %q is not known", InfoPath, i.Model)
	case i.Profile != ProfileDev && i.Profile != ProfileRelease:
		return fmt.Errorf("%s: profile %q is not known", InfoPath, i.Profile)
	case i.Sequence < 1 || i.Sequence > 1<<31:
		return fmt.Errorf("%s: sequence %d is not between 1 and %d", InfoPath, i.Sequence, uint64(1)<<31)
	case len(i.ReleaseKeys) < 1 || len(i.ReleaseKeys) > 16:
		return fmt.Errorf("%s: %d release keys are not 1 to 16", InfoPath, len(i.ReleaseKeys))
	case i.Threshold < 1 || i.Threshold > len(i.ReleaseKeys):
		return fmt.Errorf("%s: threshold %d of %d keys", InfoPath, i.Threshold, len(i.ReleaseKeys))
	case i.Root != "" && !RootKnown(i.Root):
		return fmt.Errorf("%s: root %q is not known", InfoPath, i.Root)
	case i.LabChannel && (i.Profile != ProfileDev || i.Model != ModelQEMU):
		return fmt.Errorf("%s: only a dev image for QEMU may have the lab's command channel", InfoPath)
	case i.NVIndex>>24 != 0x01:
		return fmt.Errorf("%s: nv_index %#x is not an NV index (TPM 2.0 Part 2, 7.2: 0x01……)", InfoPath, i.NVIndex)
	}
	for _, k := range i.ReleaseKeys {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("%s: a release key is not an Ed25519 key", InfoPath)
		}
	}
	_, err := i.Policy()
	return err
}
