package hpcinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"portcullis/images/manifest"
	"portcullis/rootfs/boot"
)

// TrustPath is the trust file in the initramfs, which is part of the signed image.
const TrustPath = "/etc/portcullis/trust.json"

func readTrust(path string) (manifest.Trust, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return manifest.Trust{}, boot.Failf(ReasonTrustFile, "%w", err)
	}
	t, err := manifest.ParseTrust(b)
	if err != nil {
		return manifest.Trust{}, withReason(err)
	}
	return t, nil
}

// openManifest verifies the envelope and compares its root with the one on the
// signed command line, which alone decides what is mounted.
//
// The dates are not judged: the PC's clock is in the hands of whoever holds the
// PC, and the gateway has judged them before it served anything. So Open is
// given the manifest's own first valid moment. That moment is read before the
// signature is checked, but a forged one leads nowhere: Open verifies the same bytes.
// Nor is there a version floor: this initramfs and its command line are already one version.
func openManifest(envelope []byte, trust manifest.Trust, signed boot.Verity) (*manifest.Verified, error) {
	m, err := manifest.Open(envelope, trust, firstMoment(envelope), 0)
	if err != nil {
		return nil, withReason(err)
	}
	v := boot.Verity{RootHash: m.Verity.RootHash, Salt: m.Verity.Salt, DataBlocks: m.Verity.DataBlocks, HashStart: m.Verity.HashStart}
	if v != signed {
		return nil, boot.Failf(ReasonRootHash, "the manifest's root is %.16s… with %d blocks, the command line's %.16s… with %d",
			v.RootHash, v.DataBlocks, signed.RootHash, signed.DataBlocks)
	}
	return m, nil
}

// firstMoment peeks at not_before. Whatever is wrong with the envelope, Open says it.
func firstMoment(envelope []byte) time.Time {
	var e struct {
		Payload []byte `json:"payload"`
	}
	var p struct {
		NotBefore time.Time `json:"not_before"`
	}
	if json.Unmarshal(envelope, &e) != nil || json.Unmarshal(e.Payload, &p) != nil {
		return time.Time{}
	}
	return p.NotBefore
}

// withReason keeps the reason that package manifest gave.
func withReason(err error) error {
	var e *manifest.Error
	if errors.As(err, &e) {
		return &boot.Failure{Reason: boot.Reason(e.Reason), Err: errors.New(e.Detail)}
	}
	return fmt.Errorf("manifest: %w", err)
}
