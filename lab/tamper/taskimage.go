package tamper

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// TaskImage is a container image for a task of the lab.
type TaskImage struct {
	Name    string // name:tag
	Archive []byte // what docker load reads
	Digest  string // SHA-256 of its configuration, hex: what attest.containers lists
}

// taskEntry is the image's only program.
const taskEntry = "/usr/bin/task"

// NewTaskImage makes an image that holds one static program, in the form of
// docker save (moby/docker-image-spec v1.2, "Combined Image JSON + Filesystem
// Changeset Format"). The same program and name make the same bytes.
func NewTaskImage(name string, program []byte) (*TaskImage, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeReg, Name: taskEntry[1:], Mode: 0o755, Size: int64(len(program))},
	} {
		h.ModTime = time.Unix(1, 0)
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("task image: %w", err)
		}
	}
	if _, err := w.Write(program); err != nil {
		return nil, fmt.Errorf("task image: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("task image: %w", err)
	}
	diff := sha256.Sum256(layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:01Z",
		"config": map[string]any{"Entrypoint": []string{taskEntry}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diff[:])}},
	})
	if err != nil {
		return nil, fmt.Errorf("task image: %w", err)
	}
	sum := sha256.Sum256(config)
	t := &TaskImage{Name: name, Digest: hex.EncodeToString(sum[:])}
	manifest, err := json.Marshal([]map[string]any{{"Config": t.Digest + ".json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, fmt.Errorf("task image: %w", err)
	}
	var out bytes.Buffer
	w = tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		data []byte
	}{{t.Digest + ".json", config}, {"layer.tar", layer.Bytes()}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: time.Unix(1, 0)}); err != nil {
			return nil, fmt.Errorf("task image: %w", err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("task image: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("task image: %w", err)
	}
	t.Archive = out.Bytes()
	return t, nil
}
