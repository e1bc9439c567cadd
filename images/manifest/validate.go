package manifest

import (
	"fmt"
	"regexp"
	"strings"
)

// Largest artefacts in bytes. UKI, kernel and initrd live in the PC's and the
// Pi's RAM as a whole.
const (
	MaxBootArtefact = 256 << 20
	MaxRoot         = 8 << 30
)

// MaxCmdline is the longest command line in bytes; the x86 kernel cuts at 2048 with the final NUL.
const MaxCmdline = 2047

const blockSize = 4096 // of dm-verity

const (
	maxPackages = 20000
	maxSections = 32
)

var (
	imageName    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	versionName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~:_()-]{0,99}$`)
	sectionName  = regexp.MustCompile(`^\.[a-z0-9_]{1,7}$`)
	packageEntry = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,99}=[A-Za-z0-9.+~:-]{1,100}$`)
	hexDigest    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	hexSalt      = regexp.MustCompile(`^(?:[0-9a-f]{2}){8,256}$`)
)

// artefactCaps holds every artefact a manifest describes, each exactly once, with its largest size.
var artefactCaps = map[string]int64{UKI: MaxBootArtefact, Kernel: MaxBootArtefact, Initrd: MaxBootArtefact, Root: MaxRoot}

// pcrIndexes are the PCRs a manifest predicts: all of them, no other.
var pcrIndexes = []string{"9", "11", "12"}

// Validate checks every field of m against its range and the fields against
// each other. It returns an *Error with ReasonMalformed or ReasonSize.
func (m *Manifest) Validate() error {
	for _, check := range []func() error{m.checkHead, m.checkArtefacts, m.checkVerity, m.checkCmdline, m.checkUKI, m.checkRest} {
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
		return malformed("schema %.80q, only %q is known", m.Schema, Schema)
	case !imageName.MatchString(m.Image):
		return malformed("image: %.80q is not a lower-case name", m.Image)
	case m.Profile != ProfileLab && m.Profile != ProfileGeneric:
		return malformed("profile: %.80q is neither %q nor %q", m.Profile, ProfileLab, ProfileGeneric)
	case m.LabChannel && m.Profile != ProfileLab:
		return malformed("lab_channel: an image of profile %q has no command channel", m.Profile)
	case m.Version == 0:
		return malformed("version: 0; versions start at 1")
	case !m.NotBefore.Before(m.NotAfter):
		return malformed("not_after: not later than not_before")
	case m.NotBefore.Year() < 2000 || m.NotAfter.Year() > 9999:
		return malformed("not_before, not_after: outside the years 2000 to 9999")
	}
	return nil
}

func (m *Manifest) checkArtefacts() error {
	seen := map[string]bool{}
	for _, a := range m.Artefacts {
		limit, known := artefactCaps[a.Name]
		switch {
		case !known:
			return malformed("artefacts: %.80q is no artefact of an image", a.Name)
		case seen[a.Name]:
			return malformed("artefacts: %s is there twice", a.Name)
		case a.Size <= 0:
			return malformed("artefacts: %s has size %d", a.Name, a.Size)
		case a.Size > limit:
			return refuse(ReasonSize, "artefacts: %s has %d bytes, at most %d are possible", a.Name, a.Size, limit)
		case !hexDigest.MatchString(a.SHA256):
			return malformed("artefacts: sha256 of %s is not 64 lower-case hex digits", a.Name)
		case int64(len(a.Chunks)) != (a.Size+ChunkSize-1)/ChunkSize:
			return malformed("artefacts: %s has %d chunks, its %d bytes need %d", a.Name, len(a.Chunks), a.Size, (a.Size+ChunkSize-1)/ChunkSize)
		}
		for i, c := range a.Chunks {
			if !hexDigest.MatchString(c) {
				return malformed("artefacts: chunk %d of %s is not 64 lower-case hex digits", i, a.Name)
			}
		}
		seen[a.Name] = true
	}
	if len(seen) != len(artefactCaps) {
		return malformed("artefacts: %d of the %d artefacts of an image are there", len(seen), len(artefactCaps))
	}
	return nil
}

func (m *Manifest) checkVerity() error {
	v := m.Verity
	root, _ := m.Artefact(Root)
	blocks := uint64(root.Size / blockSize)
	switch {
	case !hexDigest.MatchString(v.RootHash):
		return malformed("verity: root_hash is not 64 lower-case hex digits")
	case !hexSalt.MatchString(v.Salt):
		return malformed("verity: salt is not 8 to 256 bytes of lower-case hex")
	case root.Size%blockSize != 0:
		return malformed("verity: %s has %d bytes, not a multiple of %d", Root, root.Size, blockSize)
	case v.DataBlocks == 0 || v.HashStart < v.DataBlocks || v.HashStart >= blocks:
		return malformed("verity: %d data blocks and a tree at block %d do not fit in the %d blocks of %s", v.DataBlocks, v.HashStart, blocks, Root)
	}
	return nil
}

// checkCmdline compares the command line with the verity fields: hpc-init
// believes the first, everything else the second.
func (m *Manifest) checkCmdline() error {
	if len(m.Cmdline) > MaxCmdline {
		return refuse(ReasonSize, "cmdline: %d bytes, at most %d are possible", len(m.Cmdline), MaxCmdline)
	}
	for i := range len(m.Cmdline) {
		if c := m.Cmdline[i]; c < 0x20 || c > 0x7e {
			return malformed("cmdline: byte %d is not printable ASCII", i)
		}
	}
	v := m.Verity
	for key, want := range map[string]string{
		"roothash=":          v.RootHash,
		"portcullis.verity=": fmt.Sprintf("%s,%d,%d", v.Salt, v.DataBlocks, v.HashStart),
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

func (m *Manifest) checkUKI() error {
	u := m.UKI
	switch {
	case !versionName.MatchString(u.StubVersion):
		return malformed("uki: stub_version %.80q is no version", u.StubVersion)
	case !versionName.MatchString(u.KernelVersion):
		return malformed("uki: kernel_version %.80q is no version", u.KernelVersion)
	case !hexDigest.MatchString(u.Authenticode) || !hexDigest.MatchString(u.LinuxAuthenticode):
		return malformed("uki: an Authenticode digest is not 64 lower-case hex digits")
	case len(u.Sections) == 0 || len(u.Sections) > maxSections:
		return malformed("uki: %d sections, 1 to %d are possible", len(u.Sections), maxSections)
	}
	seen := map[string]bool{}
	for _, s := range u.Sections {
		switch {
		case !sectionName.MatchString(s.Name) || seen[s.Name]:
			return malformed("uki: section %.20q is no name or is there twice", s.Name)
		case s.Size <= 0 || s.Size > MaxBootArtefact:
			return malformed("uki: section %s has %d bytes", s.Name, s.Size)
		case !hexDigest.MatchString(s.SHA256):
			return malformed("uki: sha256 of section %s is not 64 lower-case hex digits", s.Name)
		}
		seen[s.Name] = true
	}
	return nil
}

func (m *Manifest) checkRest() error {
	for _, i := range pcrIndexes {
		if !hexDigest.MatchString(m.PCR[i]) {
			return malformed("pcr: the value of PCR %s is not 64 lower-case hex digits", i)
		}
	}
	k := m.Mask
	switch {
	case len(m.PCR) != len(pcrIndexes):
		return malformed("pcr: %d values, only those of %s are predicted", len(m.PCR), strings.Join(pcrIndexes, ", "))
	case !hexDigest.MatchString(m.Agent):
		return malformed("agent_sha256: not 64 lower-case hex digits")
	case !hexDigest.MatchString(k.SHA256):
		return malformed("kernel_text_mask: sha256 is not 64 lower-case hex digits")
	case k.Sites < 0 || k.Bytes < 0 || k.Total < int64(k.Bytes):
		return malformed("kernel_text_mask: %d sites, %d of %d bytes", k.Sites, k.Bytes, k.Total)
	case len(m.Packages) > maxPackages:
		return refuse(ReasonSize, "packages: %d, at most %d are possible", len(m.Packages), maxPackages)
	}
	for i, p := range m.Packages {
		if !packageEntry.MatchString(p) {
			return malformed("packages: %.120q is not name=version", p)
		}
		if i > 0 && m.Packages[i-1] >= p {
			return malformed("packages: %s is not in sorted order or there twice", p)
		}
	}
	return nil
}
