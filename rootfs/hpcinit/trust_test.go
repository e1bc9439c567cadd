package hpcinit

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
	"portcullis/rootfs/boot"
)

func signedVerity(m manifest.Manifest) boot.Verity {
	return boot.Verity{RootHash: m.Verity.RootHash, Salt: m.Verity.Salt, DataBlocks: m.Verity.DataBlocks, HashStart: m.Verity.HashStart}
}

func envelopeOf(t *testing.T, im *manifesttest.Image) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(im.Dir, manifest.Envelope))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The PC has no clock that anybody vouches for: dates are the gateway's to judge.
func TestManifestDatesAreNotJudgedHere(t *testing.T) {
	for name, years := range map[string]int{"past": -20, "now": 0, "future": 20} {
		im := manifesttest.New(t, func(m *manifest.Manifest) {
			m.NotBefore = m.NotBefore.AddDate(years, 0, 0)
			m.NotAfter = m.NotBefore.Add(time.Second)
		})
		m, err := openManifest(envelopeOf(t, im), im.Trust, signedVerity(im.Manifest))
		if err != nil || m.Image != im.Manifest.Image || m.Fingerprint() == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestRefusals(t *testing.T) {
	im := manifesttest.New(t, nil)
	good := envelopeOf(t, im)
	root := signedVerity(im.Manifest)
	other := im.Trust
	other.ReleaseKeys = nil
	for _, k := range im.Trust.ReleaseKeys {
		k = bytes.Clone(k)
		k[0] ^= 1
		other.ReleaseKeys = append(other.ReleaseKeys, k)
	}
	for name, c := range map[string]struct {
		envelope []byte
		trust    manifest.Trust
		signed   boot.Verity
		reason   boot.Reason
	}{
		"another root hash":    {good, im.Trust, boot.Verity{RootHash: strings.Repeat("0", 64), Salt: root.Salt, DataBlocks: root.DataBlocks, HashStart: root.HashStart}, ReasonRootHash},
		"another salt":         {good, im.Trust, boot.Verity{RootHash: root.RootHash, Salt: "00", DataBlocks: root.DataBlocks, HashStart: root.HashStart}, ReasonRootHash},
		"another length":       {good, im.Trust, boot.Verity{RootHash: root.RootHash, Salt: root.Salt, DataBlocks: root.DataBlocks - 1, HashStart: root.HashStart}, ReasonRootHash},
		"another tree":         {good, im.Trust, boot.Verity{RootHash: root.RootHash, Salt: root.Salt, DataBlocks: root.DataBlocks, HashStart: root.HashStart + 1}, ReasonRootHash},
		"a stranger's key":     {good, other, root, manifest.ReasonSignature},
		"nobody is trusted":    {good, manifest.Trust{}, root, manifest.ReasonTrust},
		"not an envelope":      {[]byte("{}"), im.Trust, root, manifest.ReasonMalformed},
		"empty":                {nil, im.Trust, root, manifest.ReasonMalformed},
		"a byte of the middle": {flip(good, len(good)/2), im.Trust, root, manifest.ReasonSignature},
	} {
		if _, err := openManifest(c.envelope, c.trust, c.signed); err == nil || boot.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v, want %s", name, err, c.reason)
		}
	}
}

// The moment that Open is asked about is read from bytes that nobody has
// verified yet. Changing it must not help.
func TestAttackForgedFirstMoment(t *testing.T) {
	im := manifesttest.New(t, nil)
	old := im.Manifest
	im.Manifest.NotBefore = im.Manifest.NotBefore.Add(time.Hour)
	im.ReleaseKey = manifesttest.Key("somebody else")
	im.Sign(t)
	if _, err := openManifest(envelopeOf(t, im), im.Trust, signedVerity(old)); boot.ReasonOf(err) != manifest.ReasonSignature {
		t.Errorf("%v", err)
	}
}

func TestTrustFile(t *testing.T) {
	im := manifesttest.New(t, nil)
	if got, err := readTrust(filepath.Join(im.Dir, "trust.json")); err != nil || !bytes.Equal(got.GatewayKey, im.Trust.GatewayKey) {
		t.Errorf("%v", err)
	}
	if _, err := readTrust(filepath.Join(im.Dir, "nothing")); boot.ReasonOf(err) != ReasonTrustFile {
		t.Errorf("missing: %v", err)
	}
	if _, err := readTrust(filepath.Join(im.Dir, manifest.Envelope)); boot.ReasonOf(err) != manifest.ReasonTrust {
		t.Errorf("another file: %v", err)
	}
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	if b[at] == 'A' {
		b[at] = 'B'
	} else {
		b[at] = 'A'
	}
	return b
}
