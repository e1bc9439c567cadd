package dockerd

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Image is an image in the form of docker save, made by Make.
type Image struct {
	Tar    []byte
	Config string   // "sha256:…"
	Layers []string // diffIDs
	Name   string   // its tag
}

// Probe builds the program of the images, static, for this machine.
func Probe(ctx context.Context) ([]byte, error) { return ProbeFor(ctx, runtime.GOARCH) }

// ProbeFor builds it for another architecture, in Go's words.
func ProbeFor(ctx context.Context, arch string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "probe")
	if err := goBuild(ctx, arch, file, "portcullis/lab/dockerd/probe"); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// goBuild builds a program of the project.
func goBuild(ctx context.Context, arch, file, program string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", file, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dockerd: building %s with go (Debian package golang-go): %w\n%s", program, err, out)
	}
	return nil
}

// Make builds an image on nothing: probe as /probe, its entry point, and mark in a
// second layer, which makes the image one of its own.
func Make(name string, probe []byte, mark string) (Image, error) {
	return MakeFor(runtime.GOARCH, name, probe, mark)
}

// MakeFor builds it for another architecture.
func MakeFor(arch, name string, probe []byte, mark string) (Image, error) {
	i := Image{Name: name}
	var layers [][]byte
	for _, l := range []struct {
		path string
		data []byte
		mode int64
	}{{"probe", probe, 0o755}, {"mark", []byte(mark), 0o644}} {
		b, err := archive(entry{l.path, l.data, l.mode})
		if err != nil {
			return Image{}, err
		}
		layers = append(layers, b)
		i.Layers = append(i.Layers, digest(b))
	}
	config, err := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "created": "2020-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": []string{"/probe"}, "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": i.Layers},
	})
	if err != nil {
		return Image{}, err
	}
	i.Config = digest(config)
	files := []entry{{i.Config[7:] + ".json", config, 0o644}}
	var names []string
	for n, l := range layers {
		name := i.Layers[n][7:] + "/layer.tar"
		names = append(names, name)
		files = append(files, entry{name, l, 0o644})
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": files[0].path, "RepoTags": []string{name}, "Layers": names}})
	if err != nil {
		return Image{}, err
	}
	i.Tar, err = archive(append(files, entry{"manifest.json", manifest, 0o644})...)
	return i, err
}

type entry struct {
	path string
	data []byte
	mode int64
}

func archive(files ...entry) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.path, Size: int64(len(f.data)), Mode: f.mode}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func digest(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}
