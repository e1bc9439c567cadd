package scenario

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"portcullis/agent/claim"
	"portcullis/images/manifest"
	"portcullis/lab"
	"portcullis/lab/attack"
	"portcullis/lab/wire"
)

// agentPort is where attestd listens for agents in a lab.
var agentPort = netip.AddrPortFrom(wire.PCLink.Addr(), 7443).String()

// played returns the played PC of the stage; its lease lasts for all scenes.
func (s *Stage) played() *attack.PC {
	if s.pc == nil {
		s.pc = &attack.PC{Host: s.Wire.PC, Link: wire.NetPort, MAC: s.MAC, Address: netip.PrefixFrom(wire.PCAddress, wire.PCLink.Bits())}
	}
	return s.pc
}

// facts are what a true agent of boot b would know.
func (s *Stage) facts(b *attack.Boot) (claim.Facts, error) {
	v, err := s.manifest()
	if err != nil {
		return claim.Facts{}, err
	}
	f := claim.Facts{Session: b.Session, Gateway: s.Built.Gateway, ManifestDigest: v.Digest}
	root, err := hex.DecodeString(v.Verity.RootHash)
	if err != nil || copy(f.RootHash[:], root) != len(f.RootHash) {
		return claim.Facts{}, fmt.Errorf("root hash %q", v.Verity.RootHash)
	}
	return f, nil
}

// manifest opens the manifest that the lab serves.
func (s *Stage) manifest() (*manifest.Verified, error) {
	data, err := os.ReadFile(filepath.Join(s.Settings.ImageDir, manifest.Envelope))
	if err != nil {
		return nil, err
	}
	public, err := base64.StdEncoding.DecodeString(s.Built.ReleaseKey)
	if err != nil {
		return nil, err
	}
	trust := manifest.Trust{Threshold: 1, ReleaseKeys: nil}
	trust.ReleaseKeys = append(trust.ReleaseKeys, public)
	return manifest.Open(data, trust, time.Now(), 0)
}

// noOffer asks for a boot, which must stay without an answer, and pxed must
// refuse the image for reason.
func (s *Stage) noOffer(ctx context.Context, reason string) (string, error) {
	mark := s.Log.Mark()
	b, err := s.played().Ask(ctx)
	if err == nil {
		return "", fmt.Errorf("a boot was offered: %s", b.URL)
	}
	if !errors.Is(err, attack.ErrNoOffer) {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	e, err := s.Log.Wait(ctx, mark, lab.Is("image.refused"))
	if err != nil {
		return "", fmt.Errorf("no offer, but no image.refused either: %w", err)
	}
	if got := e.Text("reason"); got != reason {
		return "", fmt.Errorf("refused for %s (%s), want %s", got, e.Text("detail"), reason)
	}
	for _, e := range s.Log.Since(mark) {
		if e.Name == "artefact.started" {
			return "", fmt.Errorf("%s was sent", e.Text("artefact"))
		}
	}
	return e.Text("detail"), nil
}

// firmwareTries is how often firmware asks for a boot, 3 s and more apart, before it
// gives up.
const firmwareTries = 4

// offered asks for a boot, which must be offered: as firmware does, which asks again
// while an emulated Pi still looks at its image.
func (s *Stage) offered(ctx context.Context) (b *attack.Boot, err error) {
	for range firmwareTries {
		if b, err = s.played().Ask(ctx); !errors.Is(err, attack.ErrNoOffer) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the good image is not offered: %w", err)
	}
	return b, nil
}

// changedArtefact changes one byte in the middle of each file of the image in
// turn: pxed must notice before it sends anything. Last, a byte changes while a
// boot is open: what is sent must still be what was signed.
func changedArtefact() Scene {
	return Scene{
		Name: "changed-artefact", Title: "a byte changed in any artefact on disk is refused before it is sent",
		Run: func(ctx context.Context, s *Stage) error {
			if _, err := s.offered(ctx); err != nil {
				return err
			}
			for _, name := range artefacts {
				undo, err := flip(filepath.Join(s.Settings.ImageDir, name))
				if err != nil {
					return err
				}
				want := manifest.ReasonArtefact
				if name == manifest.Envelope {
					want = manifest.ReasonSignature
				}
				_, err = s.noOffer(ctx, want)
				if undoErr := undo(); err != nil || undoErr != nil {
					return errors.Join(fmt.Errorf("%s: %w", name, err), undoErr)
				}
				if _, err := s.offered(ctx); err != nil {
					return fmt.Errorf("after %s was put right: %w", name, err)
				}
			}
			b, err := s.offered(ctx)
			if err != nil {
				return err
			}
			undo, err := flip(filepath.Join(s.Settings.ImageDir, manifest.UKI))
			if err != nil {
				return err
			}
			defer undo()
			var sent bytes.Buffer
			fetchErr := s.played().Fetch(ctx, b, manifest.UKI, &sent)
			v, err := s.manifest()
			if err != nil {
				return err
			}
			a, _ := v.Artefact(manifest.UKI)
			if fetchErr == nil {
				fetchErr = manifest.CheckArtefact(a, &sent)
			}
			if fetchErr != nil {
				return fmt.Errorf("changed while a boot was open: %w", fetchErr)
			}
			s.Note("%d files, each refused with its reason; a change during a boot is not sent", len(artefacts))
			return nil
		},
	}
}

// flip changes one bit in the middle of a file in place and keeps its times, as a
// careful attacker would.
func flip(path string) (undo func() error, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	at := st.Size() / 2
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return nil, err
	}
	was := b[0]
	if b[0] ^= 1; path[len(path)-5:] == ".dsse" && (b[0] == '"' || b[0] == '\\' || b[0] < ' ') {
		b[0] ^= 3 // the envelope stays JSON, so that its signature is what is judged
	}
	write := func(c byte) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{c}, at); err != nil {
			return err
		}
		return os.Chtimes(path, st.ModTime(), st.ModTime())
	}
	return func() error { return write(was) }, write(b[0])
}
