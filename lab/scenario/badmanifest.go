package scenario

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/manifest"
)

// badManifest puts manifests in the place of the good one that are well formed
// and yet must not be believed, and a good newer one in between: only that one is
// offered, and after it the older one, however well signed, is refused.
func badManifest() Scene {
	return Scene{
		Name: "bad-manifest", Title: "a manifest with a wrong signature, an old version or a passed date is refused",
		Run: func(ctx context.Context, s *Stage) error {
			good, err := s.manifest()
			if err != nil {
				return err
			}
			release, err := manifest.LoadKey(s.Built.ReleaseSecret)
			if err != nil {
				return err
			}
			_, stranger, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			base := good.Manifest.Version
			for _, c := range []struct {
				name    string
				key     ed25519.PrivateKey
				version uint64
				end     time.Time
				refused string // "" = must be offered
			}{
				{"a stranger's signature", stranger, base + 1, good.NotAfter, manifest.ReasonSignature},
				{"a passed date", release, base + 1, time.Now().Add(-time.Hour).UTC().Truncate(time.Second), manifest.ReasonExpired},
				{"a newer version", release, base + 2, good.NotAfter, ""},
				{"an older version than one accepted", release, base + 1, good.NotAfter, manifest.ReasonVersion},
				{"the same version again", release, base + 2, good.NotAfter, ""},
			} {
				m := good.Manifest
				m.Version, m.NotAfter = c.version, c.end
				if !m.NotBefore.Before(c.end) {
					m.NotBefore = c.end.Add(-time.Hour)
				}
				data, err := manifest.Sign(m, c.key)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				if err := replace(filepath.Join(s.Settings.ImageDir, manifest.Envelope), data); err != nil {
					return err
				}
				if c.refused == "" {
					_, err = s.offered(ctx)
				} else {
					_, err = s.noOffer(ctx, c.refused)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
			return nil
		},
	}
}

// replace puts a file in the place of another in one step.
func replace(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
