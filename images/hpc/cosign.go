package hpc

import (
	"bytes"
	"context"
	"crypto"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/manifest"
)

// CosignReport tells what a signature was added to.
type CosignReport struct {
	Image      string `json:"image"`
	Version    uint64 `json:"version"`
	Key        string `json:"key"` // id of the key that signed
	Signatures int    `json:"signatures"`
	Threshold  int    `json:"threshold"` // of the image's own trust file
}

// Cosign adds a signature to the image in dir. Before that it checks what it
// puts its name to: the signatures that are there, and that artefacts, verity
// tree, UKI and registers are what the manifest says. Only a key that the
// image's trust file knows may sign.
func Cosign(ctx context.Context, dir string, signer crypto.Signer, now time.Time) (*CosignReport, error) {
	data, err := os.ReadFile(filepath.Join(dir, TrustFile))
	if err != nil {
		return nil, fmt.Errorf("trust file: %w", err)
	}
	trust, err := manifest.ParseTrust(data)
	if err != nil {
		return nil, err
	}
	known := false
	for _, k := range trust.ReleaseKeys {
		known = known || bytes.Equal(k, publicKey(signer))
	}
	if !known {
		return nil, refuse(debroot.ReasonOptions, "key %s is not among the release keys that the image trusts", manifest.KeyID(publicKey(signer)))
	}
	// Fewer signatures than needed are the reason for adding one: one has to be good.
	whole := trust
	whole.Threshold = 1
	if r := verifyWith(ctx, VerifyOptions{Dir: dir, Now: now}, &whole, trust); !r.OK {
		return nil, refuse(Reason(r.Reason), "the image is not what its manifest says: %s", r.Detail)
	}
	path := filepath.Join(dir, manifest.Envelope)
	envelope, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	signed, err := manifest.Cosign(envelope, signer)
	if err != nil {
		return nil, err
	}
	v, err := manifest.Open(signed, whole, now, 0)
	if err != nil {
		return nil, err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, signed, 0o644); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	n := 0
	for i := 1; i <= len(trust.ReleaseKeys); i++ {
		whole.Threshold = i
		if _, err := manifest.Open(signed, whole, now, 0); err == nil {
			n = i
		}
	}
	return &CosignReport{Image: v.Image, Version: v.Version, Key: manifest.KeyID(publicKey(signer)), Signatures: n, Threshold: trust.Threshold}, nil
}
