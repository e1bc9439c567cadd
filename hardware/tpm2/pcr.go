package tpm2

import (
	"context"
	"crypto"
	_ "crypto/sha1" // banks that a chip may have active
	_ "crypto/sha512"
	"errors"
	"fmt"
	"slices"

	"portcullis/images/card"

	"portcullis/hardware/tpmattest"

	"github.com/google/go-tpm/tpm2"
)

// ReadPCR returns a register of the SHA-256 bank, 0 to 23.
func (t *TPM) ReadPCR(ctx context.Context, pcr int) ([32]byte, error) {
	m, err := t.ReadPCRs(ctx, []int{pcr})
	return m[pcr], err
}

// ReadPCRs returns registers of the SHA-256 bank, each 0 to 23.
func (t *TPM) ReadPCRs(ctx context.Context, pcrs []int) (map[int][32]byte, error) {
	var m map[int][32]byte
	err := t.do(ctx, "read registers", func() (err error) {
		m, err = t.readPCRs(pcrs)
		return err
	})
	return m, err
}

func (t *TPM) readPCRs(pcrs []int) (map[int][32]byte, error) {
	m, err := tpmattest.ReadPCRs(t.link, pcrs)
	if errors.Is(err, tpmattest.ErrNoBank) {
		return nil, refuse(ReasonPCREmpty, "%w", err)
	}
	return m, err
}

// MaxEvent is what the chip hashes in one event, in bytes (Part 2, TPM2B_EVENT).
const MaxEvent = 1024

// Extend measures data (1 to MaxEvent bytes) into a register: every active bank is
// extended with its own hash of the same bytes. The chip hashes, so that no bank
// is left out for an algorithm that we do not have: a policy over a bank that we
// skipped could be satisfied by anybody.
func (t *TPM) Extend(ctx context.Context, pcr int, data []byte) error {
	return t.do(ctx, fmt.Sprintf("extend register %d", pcr), func() error {
		if pcr < 0 || pcr > 23 {
			return errors.New("not between 0 and 23")
		}
		if len(data) < 1 || len(data) > MaxEvent {
			return fmt.Errorf("%d bytes are not 1 to %d", len(data), MaxEvent)
		}
		_, err := tpm2.PCREvent{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			EventData: tpm2.TPM2BEvent{Buffer: data},
		}.Execute(t.link)
		return err
	})
}

// Cap closes the policy until the next power cycle: it measures that the initramfs
// is being left. Nothing in the running system can unseal after it.
func (t *TPM) Cap(ctx context.Context) error {
	return t.Extend(ctx, card.PCRPhase, []byte(card.PhaseLeave))
}

// MeasureVolumeKey extends PCR 15 with an HMAC of the opened volume's key, as
// systemd-cryptsetup does ("cryptsetup:NAME:UUID"): a volume that was put in place
// of ours shows in the next quote. mac is the HMAC with the volume key
// (luks.Volume.HMAC); the key itself does not come here.
func (t *TPM) MeasureVolumeKey(ctx context.Context, name, uuid string, mac func(crypto.Hash, []byte) ([]byte, error)) error {
	return t.do(ctx, "measure volume key", func() error {
		banks, err := t.banks()
		if err != nil {
			return err
		}
		message := []byte("cryptsetup:" + name + ":" + uuid)
		var digests []tpm2.TPMTHA
		for _, b := range banks {
			h, err := bankHash(b)
			if err != nil {
				return err
			}
			d, err := mac(h, message)
			if err != nil {
				return err
			}
			if len(d) != h.Size() {
				return fmt.Errorf("an HMAC of %d bytes for %v", len(d), h)
			}
			digests = append(digests, tpm2.TPMTHA{HashAlg: b, Digest: d})
		}
		_, err = tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: card.PCRVolumeKey, Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: digests},
		}.Execute(t.link)
		return err
	})
}

// bankHash is the hash whose HMAC goes into a bank. SM3 and SHA3-256 banks take
// that of SHA-256, which has their size: a bank must not stay as it was.
func bankHash(a tpm2.TPMIAlgHash) (crypto.Hash, error) {
	switch a {
	case tpm2.TPMAlgSHA1:
		return crypto.SHA1, nil
	case tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA3256, algSM3:
		return crypto.SHA256, nil
	case tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA3384:
		return crypto.SHA384, nil
	case tpm2.TPMAlgSHA512, tpm2.TPMAlgSHA3512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("register bank %#x is not known", uint16(a))
}

const algSM3 = tpm2.TPMIAlgHash(0x0012)

// Banks names the active banks by algorithm number, ascending.
func (t *TPM) Banks(ctx context.Context) (banks []tpm2.TPMIAlgHash, err error) {
	err = t.do(ctx, "banks", func() (err error) {
		banks, err = t.banks()
		return err
	})
	return banks, err
}

func (t *TPM) banks() ([]tpm2.TPMIAlgHash, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	list, err := r.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, err
	}
	var banks []tpm2.TPMIAlgHash
	for _, s := range list.PCRSelections {
		if slices.ContainsFunc(s.PCRSelect, func(b byte) bool { return b != 0 }) {
			banks = append(banks, s.Hash)
		}
	}
	slices.Sort(banks)
	if len(banks) == 0 {
		return nil, refuse(ReasonPCREmpty, "the chip has no active register bank")
	}
	return banks, nil
}
