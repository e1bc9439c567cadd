package card

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
)

// HandoverPath is where pi-init leaves a Handover for the running system.
const HandoverPath = "/run/portcullis/pi.json"

// HandoverSchema is the only schema.
const HandoverSchema = "portcullis/pi-handover/v1"

// MaxHandover caps an encoded Handover, in bytes.
const MaxHandover = 16 << 10

// How the volume was opened.
const (
	UnlockedByChip     = "tpm2"         // the TPM let go of the key
	UnlockedByZymbit   = "zymbit"       // the Zymbit module did
	UnlockedByCombined = "combined"     // both did, each of its half
	UnlockedByRecovery = "recovery"     // a person typed the recovery key
	UnlockedBySystemd  = "systemd-tpm2" // a token that systemd-cryptenroll made
	UnlockedByEnrol    = "enrol"        // first boot: the key was born in this boot
)

// Handover is what pi-init found out, for the services and for people. It is
// public: nothing in it opens anything.
type Handover struct {
	Schema string `json:"schema"`

	Model    string `json:"model"`
	Profile  string `json:"profile"`
	Sequence uint64 `json:"sequence"`
	RootHash string `json:"root_hash"` // hex, of the system that was started

	Slot    Slot   `json:"slot"`
	Trial   bool   `json:"trial"`             // not committed yet: the health gate decides
	Attempt int    `json:"attempt,omitempty"` // of the trial
	Dropped string `json:"dropped,omitempty"` // typed reason why this boot dropped a trial
	// Uncounted: the card says that this release is committed, and the chip has not counted it.
	Uncounted bool `json:"uncounted,omitempty"`

	Posture       string `json:"posture"` // hardware.Posture, as detected in this boot
	PostureDetail string `json:"posture_detail,omitempty"`
	Platform      string `json:"platform"` // who measured: self, efi
	Backend       string `json:"backend"`  // hardware.Backend that keeps this volume's key, or could; empty: no chip
	Chip          string `json:"chip,omitempty"`
	ChipProblem   string `json:"chip_problem,omitempty"` // typed reason why the chip did not open the volume

	Volume    string `json:"volume,omitempty"`     // LUKS2 UUID of the open volume
	VolumePCR string `json:"volume_pcr,omitempty"` // register 15 (SHA-256 bank, hex) after it was opened; see Enrolment
	// ReEnrolled: when this volume was made, the chip had kept the key of another one
	// before. Who did not ask for that has lost the old one to somebody.
	ReEnrolled bool `json:"re_enrolled,omitempty"`

	FirstBoot      bool    `json:"first_boot"`
	Recovered      bool    `json:"recovered"` // opened with the recovery key: portcullis root rearm is due
	UnlockedBy     string  `json:"unlocked_by"`
	HeaderRepaired bool    `json:"header_repaired,omitempty"`
	Uncapped       bool    `json:"uncapped,omitempty"` // there is a chip, and it could not be closed: root may get its key until the power was off
	Configured     bool    `json:"configured"`         // the seed held settings that are in force
	Seconds        float64 `json:"seconds"`            // from the kernel's start to the real system's

	ReleaseKeys [][]byte `json:"release_keys"` // Ed25519, raw: who signs updates
	Threshold   int      `json:"threshold"`
	PolicyKey   []byte   `json:"policy_key"` // ECDSA P-256, PKIX DER
	NVIndex     uint32   `json:"nv_index"`
	LabChannel  bool     `json:"lab_channel,omitempty"`
	Root        string   `json:"root,omitempty"` // chip that the image demands, as in Info
}

// Encode returns the JSON of a valid Handover.
func (h *Handover) Encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(h, "", "  ")
	return append(b, '\n'), err
}

// ParseHandover reads what pi-init of the same release wrote; what it returns is valid.
func ParseHandover(b []byte) (*Handover, error) {
	if len(b) > MaxHandover {
		return nil, fmt.Errorf("%s: %d bytes are more than %d", HandoverPath, len(b), MaxHandover)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var h Handover
	if err := d.Decode(&h); err != nil {
		return nil, fmt.Errorf("%s: %w", HandoverPath, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: something follows the object", HandoverPath)
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	return &h, nil
}

// Info returns the part of a Handover that the image said of itself.
func (h *Handover) Info() *Info {
	return &Info{Schema: InfoSchema, Model: h.Model, Profile: h.Profile, Sequence: h.Sequence, ReleaseKeys: h.ReleaseKeys,
		Threshold: h.Threshold, PolicyKey: h.PolicyKey, NVIndex: h.NVIndex, LabChannel: h.LabChannel, Root: h.Root}
}

func (h *Handover) check() error {
	if h.Schema != HandoverSchema {
		return fmt.Errorf("%s: schema %q is not %q", HandoverPath, h.Schema, HandoverSchema)
	}
	if h.Slot != SlotA && h.Slot != SlotB {
		return fmt.Errorf("%s: slot %q", HandoverPath, h.Slot)
	}
	if h.Attempt < 0 || h.Attempt > MaxAttempts || !h.Trial && h.Attempt != 0 {
		return fmt.Errorf("%s: attempt %d", HandoverPath, h.Attempt)
	}
	switch h.UnlockedBy {
	case UnlockedByChip, UnlockedByZymbit, UnlockedByCombined, UnlockedByRecovery, UnlockedBySystemd, UnlockedByEnrol:
	default:
		return fmt.Errorf("%s: unlocked by %q", HandoverPath, h.UnlockedBy)
	}
	return h.Info().check()
}

// SealLabel is the label under which a chip keeps the secret of the volume with
// this LUKS UUID: a blob of another card's header is refused by the chip.
func SealLabel(uuid string) string { return "portcullis-volume:" + uuid }

// ChipSecretSize is the size in bytes of the secret that a chip keeps.
const ChipSecretSize = 32

// ChipPassphrase is the passphrase of the chip's keyslot: the secret in standard
// base64, as systemd-cryptenroll does it. The caller wipes both.
func ChipPassphrase(secret []byte) []byte {
	out := make([]byte, base64.StdEncoding.EncodedLen(len(secret)))
	base64.StdEncoding.Encode(out, secret)
	return out
}
