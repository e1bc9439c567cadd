package pi

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/bundle"
	"portcullis/images/debroot"
	"portcullis/images/manifest"
)

// Summary is what an image is, for machines: SummaryFile.
type Summary struct {
	Model      string            `json:"model"`
	Profile    string            `json:"profile"`
	LabChannel bool              `json:"lab_channel"`
	Sequence   uint64            `json:"sequence"`
	Kernel     string            `json:"kernel"`
	Cmdline    string            `json:"cmdline"`
	RootHash   string            `json:"root_hash"`
	BootDigest string            `json:"boot_digest"`
	ReleaseKey string            `json:"release_key"` // id
	Root       string            `json:"root"`        // chip that first boot enrols
	Packages   int               `json:"packages"`
	Sizes      map[string]int64  `json:"bytes"`
	SHA256     map[string]string `json:"sha256"`
}

// Result tells what was built.
type Result struct {
	Summary
	Dir    string        `json:"dir"`
	Cached bool          `json:"cached"` // nothing had to be made
	Took   time.Duration `json:"-"`
}

// summarise writes SummaryFile over the other files of dir.
func (b *builder) summarise(dir string, m *bundle.Manifest) error {
	s := Summary{
		Model: m.Model, Profile: m.Profile, LabChannel: m.LabChannel, Sequence: m.Sequence, Kernel: m.Kernel, Cmdline: m.Cmdline,
		RootHash: m.Verity.RootHash, BootDigest: m.BootDigest, ReleaseKey: manifest.KeyID(b.o.Keys.Public()), Root: b.o.Root,
		Packages: len(b.packages.Used()), Sizes: map[string]int64{}, SHA256: map[string]string{},
	}
	for _, name := range publicFiles {
		if name == SummaryFile {
			continue
		}
		path := filepath.Join(dir, name)
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		s.Sizes[name] = st.Size()
		if s.SHA256[name], err = debroot.DigestFile(path); err != nil {
			return err
		}
	}
	for _, a := range m.Artefacts {
		s.Sizes[a.Name], s.SHA256[a.Name] = a.Size, a.SHA256
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, SummaryFile), append(text, '\n'), 0o644)
}

// Print writes the result for people.
func (r *Result) Print(w io.Writer, colour bool) {
	fmt.Fprintf(w, "Pi image for %s, profile %s, release %d in %s\n", r.Model, r.Profile, r.Sequence, r.Dir)
	for _, name := range []string{CardFile, BundleFile, bundle.Root} {
		fmt.Fprintf(w, "  %-12s %7.1f MB  sha256 %s\n", name, float64(r.Sizes[name])/1e6, r.SHA256[name])
	}
	fmt.Fprintf(w, "  %-12s kernel %s, %d packages\n", "contents", r.Kernel, r.Packages)
	fmt.Fprintf(w, "  %-12s %s\n", "root hash", r.RootHash)
	fmt.Fprintf(w, "  %-12s %s\n", "enrols", r.Root)
	if r.LabChannel {
		fmt.Fprintln(w, debroot.Paint(colour, debroot.Red, "  LAB IMAGE  it has a root command channel: never start a real Pi with it"))
	}
}
