// Package service builds the Pi's own services as container images: one static
// program on nothing, without a Dockerfile and without an engine. The same program
// gives the same bytes on every machine. cmd/portcullis uses it; what comes out is
// approved and loaded like every other image.
package service

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"portcullis/images/debroot"
	"portcullis/verifier/image"
)

// Names are the services that can be images.
var Names = []string{"attestd", "pxed"}

// buildTag of the programs: those of the Pi.
const buildTag = "appliance"

// Options of Build.
type Options struct {
	Names    []string // of services; none = all
	Arch     string   // amd64 or arm64
	OutDir   string   // where NAME.tar goes
	CacheDir string
	Bin      string // directory with static programs for Arch; "" = they are built from source
	Progress debroot.Progress
}

// Built is one image.
type Built struct {
	Name     string   `json:"name"`
	File     string   `json:"file"`
	Bytes    int64    `json:"bytes"`
	SHA256   string   `json:"sha256"` // of the file
	Platform string   `json:"platform"`
	Manifest string   `json:"manifest"`
	Config   string   `json:"config"`
	Layers   []string `json:"layers"` // diffIDs
}

// Build makes an archive for each service: an OCI layout that docker load takes, too.
func Build(ctx context.Context, o Options) ([]Built, error) {
	if len(o.Names) == 0 {
		o.Names = Names
	}
	for _, n := range o.Names {
		if !slices.Contains(Names, n) {
			return nil, fmt.Errorf("service: %q is none of %s", n, strings.Join(Names, ", "))
		}
	}
	m, err := debroot.NewMaker(o.CacheDir, o.Progress, false)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.OutDir, 0o755); err != nil {
		return nil, err
	}
	var out []Built
	for _, n := range o.Names {
		given := ""
		if o.Bin != "" {
			given = filepath.Join(o.Bin, n)
		}
		program, _, err := m.Program(ctx, o.Arch, n, given, buildTag)
		if err != nil {
			return nil, err
		}
		b, err := Pack(n, o.Arch, program, o.OutDir)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", n, err)
		}
		out = append(out, b)
	}
	return out, nil
}

// Places that the services' directories of the Pi are mounted at.
var places = []string{"etc", "etc/portcullis", "run", "run/portcullis", "usr", "usr/bin", "var", "var/lib", "var/lib/portcullis"}

// Pack makes NAME.tar in dir of one program.
func Pack(name, arch, program, dir string) (_ Built, err error) {
	layer, err := os.CreateTemp(dir, ".layer-")
	if err != nil {
		return Built{}, err
	}
	defer func() { err = errors.Join(err, layer.Close(), os.Remove(layer.Name())) }()
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, sum), name, program); err != nil {
		return Built{}, err
	}
	files, err := layout(name, arch, layer, sum)
	if err != nil {
		return Built{}, err
	}
	o, err := image.OutlineFiles(files.open, "linux/"+arch)
	if err != nil {
		return Built{}, err
	}
	b := Built{Name: name, File: filepath.Join(dir, name+".tar"), Platform: o.Platform, Manifest: o.Manifest, Config: o.Config, Layers: o.Layers}
	archive, size, err := o.Tar()
	if err != nil {
		return Built{}, err
	}
	defer archive.Close()
	b.Bytes = size
	b.SHA256, err = keep(b.File, archive)
	return b, err
}

// keep writes a file at once, and tells its SHA-256.
func keep(path string, from io.Reader) (digest string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name()) // where it was not renamed
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), from)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), os.Rename(f.Name(), path)
}

// writeLayer packs the one layer: directories, and the program.
func writeLayer(to io.Writer, name, program string) error {
	f, err := os.Open(program)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	w := tar.NewWriter(to)
	epoch := time.Unix(0, 0)
	for _, p := range places {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p + "/", Mode: 0o755, ModTime: epoch, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/" + name, Mode: 0o755, Size: st.Size(), ModTime: epoch, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	if _, err := io.Copy(w, f); err != nil {
		return err
	}
	return w.Close()
}

// memory is a layout whose texts are here, and whose layer is a file.
type memory struct {
	texts map[string]string
	layer string // its name
	file  *os.File
	size  int64
}

func (m *memory) open(name string) (io.ReaderAt, int64, error) {
	if name == m.layer {
		return m.file, m.size, nil
	}
	t, ok := m.texts[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return strings.NewReader(t), int64(len(t)), nil
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// layout writes configuration, manifest and index (OCI image-spec 1.1).
func layout(name, arch string, layer *os.File, sum hash.Hash) (*memory, error) {
	st, err := layer.Stat()
	if err != nil {
		return nil, err
	}
	const dir, kind = "blobs/sha256/", "application/vnd.oci.image."
	hexSum := hex.EncodeToString(sum.Sum(nil))
	m := &memory{texts: map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`}, layer: dir + hexSum, file: layer, size: st.Size()}
	text := func(v any) (descriptor, []byte, error) {
		b, err := json.Marshal(v)
		s := sha256.Sum256(b)
		d := hex.EncodeToString(s[:])
		m.texts[dir+d] = string(b)
		return descriptor{Digest: "sha256:" + d, Size: int64(len(b))}, b, err
	}
	config, _, err := text(map[string]any{"architecture": arch, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/usr/bin/" + name}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hexSum}}})
	if err != nil {
		return nil, err
	}
	config.MediaType = kind + "config.v1+json"
	const manifestType = kind + "manifest.v1+json"
	_, manifest, err := text(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config,
		"layers": []descriptor{{kind + "layer.v1.tar", "sha256:" + hexSum, st.Size()}}})
	if err != nil {
		return nil, err
	}
	index, err := image.Index(manifest, manifestType)
	m.texts["index.json"] = string(index)
	return m, err
}
