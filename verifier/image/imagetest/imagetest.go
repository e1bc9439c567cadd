// Package imagetest makes container images for tests: right ones, and pieces of
// which tests make wrong ones. Tests only may import it.
package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Media types of an OCI image.
const (
	ManifestType = "application/vnd.oci.image.manifest.v1+json"
	ConfigType   = "application/vnd.oci.image.config.v1+json"
	LayerType    = "application/vnd.oci.image.layer.v1.tar"
)

// Digest is the SHA-256 of b as images write it.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Files are the files of an archive by their paths.
type Files map[string][]byte

// Tar packs entries as they are, in their order.
func Tar(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := bytes.Repeat([]byte{'x'}, int(h.Size))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Pack packs files, sorted.
func Pack(t testing.TB, files Files) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// OneFile is a layer with one file of a content.
func OneFile(t testing.TB, name, content string) []byte {
	return Pack(t, Files{name: []byte(content)})
}

// Gzip packs b.
func Gzip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Descriptor names a blob.
type Descriptor struct {
	MediaType string            `json:"mediaType"`
	Digest    string            `json:"digest"`
	Size      int64             `json:"size"`
	Platform  map[string]string `json:"platform,omitempty"`
}

// Describe names b.
func Describe(mediaType string, b []byte) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: Digest(b), Size: int64(len(b))}
}

// JSON encodes v.
func JSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Config is an image's configuration for layers.
func Config(t testing.TB, layers ...[]byte) []byte {
	t.Helper()
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, Digest(l))
	}
	return JSON(t, map[string]any{"architecture": "amd64", "os": "linux",
		"config": map[string]any{"User": "65534:65534", "Entrypoint": []string{"/run-me"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
}

// OCI is a layout of one image; every second layer is packed.
func OCI(t testing.TB, layers ...[]byte) Files {
	t.Helper()
	config := Config(t, layers...)
	files := Files{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	var named []Descriptor
	for i, l := range layers {
		kind := LayerType
		if i%2 == 1 {
			l, kind = Gzip(t, l), LayerType+"+gzip"
		}
		named = append(named, Describe(kind, l))
		files.Blob(l)
	}
	files.Blob(config)
	return files.Top(t, JSON(t, map[string]any{"schemaVersion": 2, "mediaType": ManifestType, "config": Describe(ConfigType, config), "layers": named}))
}

// Blob puts b where its digest says.
func (f Files) Blob(b []byte) { f["blobs/sha256/"+Digest(b)[7:]] = b }

// Top makes a manifest the one of the layout.
func (f Files) Top(t testing.TB, manifest []byte) Files {
	t.Helper()
	f.Blob(manifest)
	f["index.json"] = JSON(t, map[string]any{"schemaVersion": 2, "manifests": []Descriptor{Describe(ManifestType, manifest)}})
	return f
}

// Saved is what docker save wrote before it wrote OCI layouts.
func Saved(t testing.TB, layers ...[]byte) Files {
	t.Helper()
	config := Config(t, layers...)
	files := Files{"config.json": config}
	var names []string
	for i, l := range layers {
		name := string(rune('a'+i)) + "/layer.tar"
		files[name] = l
		names = append(names, name)
	}
	files["manifest.json"] = JSON(t, []map[string]any{{"Config": "config.json", "RepoTags": []string{"x:1"}, "Layers": names}})
	return files
}

// Dir writes files below a new directory.
func (f Files) Dir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range f {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// File writes an archive of files into a new file.
func (f Files) File(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(name, Pack(t, f), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
