package pi

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"portcullis/images/bundle"
)

// The SPDX 2.3 document (ISO/IEC 5962; spdx.github.io/spdx-spec/v2.3), as far as
// it is used here.
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	License       string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID               string            `json:"SPDXID"`
	Name             string            `json:"name"`
	Version          string            `json:"versionInfo"`
	Purpose          string            `json:"primaryPackagePurpose,omitempty"`
	DownloadLocation string            `json:"downloadLocation"`
	FilesAnalyzed    bool              `json:"filesAnalyzed"`
	Checksums        []spdxChecksum    `json:"checksums,omitempty"`
	References       []spdxExternalRef `json:"externalRefs,omitempty"`
	Comment          string            `json:"comment,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxExternalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const spdxImage = "SPDXRef-image"

// sbom lists everything that bytes of the image come from: Debian packages, our
// programs and the Go modules in them.
func (b *builder) sbom(root *rootInfo, m *bundle.Manifest) ([]byte, error) {
	d := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: fmt.Sprintf("portcullis-pi-%s-%s-%d", m.Model, m.Profile, m.Sequence),
		Creation: spdxCreation{time.Unix(root.Epoch, 0).UTC().Format(time.RFC3339), []string{"Tool: portcullis"}},
		Packages: []spdxPackage{{
			ID: spdxImage, Name: "portcullis-pi-image", Version: fmt.Sprint(m.Sequence), Purpose: "OPERATING-SYSTEM", DownloadLocation: "NOASSERTION",
			Checksums: sha256Sum(m.Artefact(bundle.Root).SHA256), Comment: "Checksum of the root file system with its verity tree, root hash " + m.Verity.RootHash,
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", spdxImage}},
	}
	add := func(p spdxPackage, in ...string) {
		p.DownloadLocation = "NOASSERTION"
		d.Packages = append(d.Packages, p)
		for _, i := range in {
			d.Relationships = append(d.Relationships, spdxRelationship{i, "CONTAINS", p.ID})
		}
	}
	for _, p := range b.packages.Used() {
		add(spdxPackage{
			ID: spdxID("deb", p.Name), Name: p.Name, Version: p.Version, Checksums: sha256Sum(p.SHA256),
			References: purl(fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=%s", url.PathEscape(p.Name), url.PathEscape(p.Version), p.Arch, b.recipe.Suite)),
		}, spdxImage)
	}
	if err := b.sbomVendor(add); err != nil {
		return nil, err
	}
	if err := b.sbomPrograms(add); err != nil {
		return nil, err
	}
	sum := sha256.New()
	if err := json.NewEncoder(sum).Encode(d); err != nil {
		return nil, err
	}
	// A name, not an address: nothing has to answer there.
	d.Namespace = "https://portcullis.invalid/spdx/" + hex.EncodeToString(sum.Sum(nil))
	text, err := json.MarshalIndent(d, "", " ")
	return append(text, '\n'), err
}

// sbomVendor adds the packages that the operator gave for a Zymbit module: what they
// are called as files, because nothing in them says who made them.
func (b *builder) sbomVendor(add func(p spdxPackage, in ...string)) error {
	files, digests, err := b.zymbitPackages()
	if err != nil {
		return err
	}
	for i, digest := range strings.Fields(digests) {
		name := filepath.Base(files[i])
		add(spdxPackage{ID: spdxID("operator", name), Name: name, Version: "NOASSERTION", Checksums: sha256Sum(digest),
			Comment: "for a Zymbit module; given by who built the image"}, spdxImage)
	}
	return nil
}

// sbomPrograms adds our programs and the Go modules that are linked into them.
func (b *builder) sbomPrograms(add func(p spdxPackage, in ...string)) error {
	modules := map[string]spdxPackage{}
	inside := map[string][]string{}
	for _, p := range b.programs {
		info, err := buildinfo.ReadFile(p.path)
		if err != nil {
			return fmt.Errorf("what %s is made of: %w", p.name, err)
		}
		id := spdxID("program", p.name)
		add(spdxPackage{ID: id, Name: p.name, Version: fmt.Sprint(b.o.Sequence), Purpose: "APPLICATION", Checksums: sha256Sum(p.digest), Comment: "built with " + info.GoVersion}, spdxImage)
		for _, dep := range info.Deps {
			mod := dep
			if dep.Replace != nil {
				mod = dep.Replace
			}
			mid := spdxID("go", mod.Path+"-"+mod.Version)
			modules[mid] = spdxPackage{ID: mid, Name: mod.Path, Version: mod.Version, References: purl("pkg:golang/" + mod.Path + "@" + mod.Version)}
			inside[mid] = append(inside[mid], id)
		}
	}
	ids := make([]string, 0, len(modules))
	for id := range modules {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	for _, id := range ids {
		add(modules[id], inside[id]...)
	}
	return nil
}

func sha256Sum(hexDigest string) []spdxChecksum { return []spdxChecksum{{"SHA256", hexDigest}} }

func purl(s string) []spdxExternalRef { return []spdxExternalRef{{"PACKAGE-MANAGER", "purl", s}} }

// spdxID makes an identifier: letters, digits, points and hyphens only (§3.2 of the specification).
func spdxID(kind, name string) string {
	return "SPDXRef-" + kind + "-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, name)
}
