// Package bundle is an update of a Pi in one file: a signed manifest, then the
// boot partition and the system image in pieces that are each checked before
// anything is done with them. The image builder writes it, the updater reads it.
//
// What Open returned has been verified; nothing behind the manifest is read before.
package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"portcullis/images/card"
	"portcullis/images/manifest"
)

// Schema is the only schema, PayloadType its DSSE payload type.
const (
	Schema      = "portcullis/pi/v1"
	PayloadType = "application/vnd.portcullis.pi.v1+json"
)

// Extension ends the name of a bundle.
const Extension = ".pcupdate"

// Names of the artefacts, in the order of the file.
const (
	Boot = "boot.fat" // a whole boot partition: card.BootSize bytes
	Root = "root.img" // squashfs and verity tree: a multiple of 4096 up to card.SystemSize
)

// Manifest describes one release for one model.
type Manifest struct {
	Schema     string              `json:"schema"`
	Model      string              `json:"model"`       // card.ModelPi4, …
	Profile    string              `json:"profile"`     // card.ProfileDev or card.ProfileRelease
	LabChannel bool                `json:"lab_channel"` // the lab's command channel is in it: dev for QEMU only
	Sequence   uint64              `json:"sequence"`    // 1 to card.MaxSequence; older ones are refused
	Kernel     string              `json:"kernel"`      // uname -r
	Cmdline    string              `json:"cmdline"`     // of the image, without the firmware's words
	Verity     manifest.Verity     `json:"verity"`
	BootDigest string              `json:"boot_digest"` // card.BootDigest of the boot partition, hex
	Policy     string              `json:"policy"`      // SHA-256 of policy.json, hex
	Packages   string              `json:"packages"`    // SHA-256 of the sorted name=version lines, hex
	Artefacts  []manifest.Artefact `json:"artefacts"`   // Boot, Root; Write fills them in
}

var (
	hexDigest  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	hexSalt    = regexp.MustCompile(`^(?:[0-9a-f]{2}){8,256}$`)
	kernelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}$`)
)

// maxCmdline is COMMAND_LINE_SIZE of arm64 with its final NUL.
const maxCmdline = 2047

const verityBlock = 4096

// Release is what the slot state calls this release.
func (m *Manifest) Release() card.Release {
	r := card.Release{Sequence: m.Sequence}
	hex.Decode(r.Root[:], []byte(m.Verity.RootHash))
	return r
}

// Artefact returns the artefact of that name.
func (m *Manifest) Artefact(name string) manifest.Artefact {
	for _, a := range m.Artefacts {
		if a.Name == name {
			return a
		}
	}
	return manifest.Artefact{}
}

// Validate checks every field against its range and the fields against each other.
func (m *Manifest) Validate() error {
	for _, check := range []func() error{m.checkHead, m.checkArtefacts, m.checkVerity, m.checkCmdline} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func malformed(format string, args ...any) error { return refuse(ReasonMalformed, format, args...) }

func (m *Manifest) checkHead() error {
	switch {
	case m.Schema != Schema:
		return malformed("schema %.60q, only %q is known", m.Schema, Schema)
	case m.Model != card.ModelPi4 && m.Model != card.ModelPi5 && m.Model != card.ModelQEMU:
		return malformed("model %.40q is not known", m.Model)
	case m.Profile != card.ProfileDev && m.Profile != card.ProfileRelease:
		return malformed("profile %.40q is not known", m.Profile)
	case m.LabChannel && (m.Profile != card.ProfileDev || m.Model != card.ModelQEMU):
		return malformed("only a dev image for QEMU may have the lab's command channel")
	case m.Sequence < 1 || m.Sequence > card.MaxSequence:
		return malformed("sequence %d is not between 1 and %d", m.Sequence, uint64(card.MaxSequence))
	case !kernelName.MatchString(m.Kernel):
		return malformed("kernel %.80q is no release", m.Kernel)
	}
	for name, d := range map[string]string{"boot_digest": m.BootDigest, "policy": m.Policy, "packages": m.Packages} {
		if !hexDigest.MatchString(d) {
			return malformed("%s is not 64 lower-case hex digits", name)
		}
	}
	return nil
}

func (m *Manifest) checkArtefacts() error {
	if len(m.Artefacts) != 2 || m.Artefacts[0].Name != Boot || m.Artefacts[1].Name != Root {
		return malformed("artefacts are not %s and %s", Boot, Root)
	}
	for _, a := range m.Artefacts {
		switch {
		case a.Name == Boot && a.Size != card.BootSize:
			return refuse(ReasonSize, "%s has %d bytes, a boot partition has %d", a.Name, a.Size, card.BootSize)
		case a.Name == Root && (a.Size <= 0 || a.Size > card.SystemSize || a.Size%verityBlock != 0):
			return refuse(ReasonSize, "%s has %d bytes, a system slot takes a multiple of %d up to %d", a.Name, a.Size, verityBlock, card.SystemSize)
		case !hexDigest.MatchString(a.SHA256):
			return malformed("sha256 of %s is not 64 lower-case hex digits", a.Name)
		case int64(len(a.Chunks)) != (a.Size+manifest.ChunkSize-1)/manifest.ChunkSize:
			return malformed("%s has %d chunks for %d bytes", a.Name, len(a.Chunks), a.Size)
		}
		for i, c := range a.Chunks {
			if !hexDigest.MatchString(c) {
				return malformed("chunk %d of %s is not 64 lower-case hex digits", i, a.Name)
			}
		}
	}
	return nil
}

func (m *Manifest) checkVerity() error {
	v, blocks := m.Verity, uint64(m.Artefact(Root).Size/verityBlock)
	switch {
	case !hexDigest.MatchString(v.RootHash):
		return malformed("verity: root_hash is not 64 lower-case hex digits")
	case !hexSalt.MatchString(v.Salt):
		return malformed("verity: salt is not 8 to 256 bytes of lower-case hex")
	case v.DataBlocks == 0 || v.HashStart < v.DataBlocks || v.HashStart >= blocks:
		return malformed("verity: %d data blocks and a tree at block %d do not fit in %d blocks", v.DataBlocks, v.HashStart, blocks)
	}
	return nil
}

// checkCmdline compares the command line, which pi-init believes, with the rest.
func (m *Manifest) checkCmdline() error {
	if len(m.Cmdline) > maxCmdline {
		return refuse(ReasonSize, "cmdline: %d bytes, the kernel takes %d", len(m.Cmdline), maxCmdline)
	}
	for i := range len(m.Cmdline) {
		if c := m.Cmdline[i]; c < 0x20 || c > 0x7e {
			return malformed("cmdline: byte %d is not printable ASCII", i)
		}
	}
	own, err := card.Cmdline(m.Cmdline)
	if err != nil || own != m.Cmdline {
		return malformed("cmdline: %q is not one line that begins with %s", m.Cmdline, card.CmdlineMark)
	}
	v := m.Verity
	for key, want := range map[string]string{
		"portcullis.release=": fmt.Sprint(m.Sequence),
		"roothash=":           v.RootHash,
		"portcullis.verity=":  fmt.Sprintf("%s,%d,%d", v.Salt, v.DataBlocks, v.HashStart),
	} {
		var got []string
		for _, word := range strings.Fields(m.Cmdline) {
			if rest, ok := strings.CutPrefix(word, key); ok {
				got = append(got, rest)
			}
		}
		if len(got) != 1 || got[0] != want {
			return malformed("cmdline: %s%s must be there once and nothing else under that name", key, want)
		}
	}
	return nil
}

// encode is the one encoding: JSON without white space and HTML escapes.
func encode(m Manifest) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decode accepts what encode writes and nothing that a second reader could
// understand differently.
func decode(b []byte) (Manifest, error) {
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, malformed("the manifest is not readable: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return m, malformed("data behind the manifest")
	}
	if again, err := encode(m); err != nil || !bytes.Equal(again, b) {
		return m, malformed("the manifest is not in its canonical encoding")
	}
	return m, m.Validate()
}

// Digest is the SHA-256 of the signed payload: the name of a bundle in records.
func Digest(payload []byte) string {
	sum := sha256.Sum256(payload)
	return hex.EncodeToString(sum[:])
}
