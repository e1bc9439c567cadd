// Package importer takes the PC's image and updates of the Pi from a stick that a
// stranger may have written. It reads the FAT file system itself, so that no kernel
// parser meets it, believes nothing that is not signed, and replaces what is there
// in one step. cmd/portcullis calls it as root.
package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"portcullis/images/fat"
	"portcullis/images/manifest"
)

// Label is the label of a stick's file system.
const Label = "PCIMPORT"

// imageFolder is where an image stands on a stick.
const imageFolder = "hpc"

// reserve is what stays free in the data volume, in bytes: journals go on.
const reserve = 32 << 20

// ImageOptions say which images are taken, and where to.
type ImageOptions struct {
	Dir      string         // what pxed reads; its parent exists
	Trust    manifest.Trust // whose images
	Floor    uint64         // lowest version
	AllowLab bool           // take an image with a root command channel
	Progress func(name string, done, total int64)
}

// ImageResult says what happened to the image of a stick.
type ImageResult struct {
	Image    string `json:"image"`
	Version  uint64 `json:"version"`
	Digest   string `json:"manifest_sha256"`
	Changed  bool   `json:"changed"` // false: it was there already
	Bytes    int64  `json:"bytes"`
	Artefact int    `json:"artefacts"`
}

// Image copies the image of a stick. Nothing of it is in Dir before all of it has
// been compared with its signed manifest; a call that is killed leaves Dir as it was.
func Image(ctx context.Context, stick *fat.FS, o ImageOptions) (ImageResult, error) {
	envelope, err := stick.ReadFile(imageFolder+"/"+manifest.Envelope, manifest.MaxEnvelope)
	if err != nil {
		return ImageResult{}, err
	}
	m, err := manifest.OpenUndated(envelope, o.Trust, max(o.Floor, installed(o)))
	if err != nil {
		return ImageResult{}, err
	}
	r := ImageResult{Image: m.Image, Version: m.Version, Digest: m.Fingerprint(), Artefact: len(m.Artefacts)}
	if m.LabChannel && !o.AllowLab {
		return r, refuse(ReasonLab, "%s version %d has a root command channel and pxe.allow_lab_image is off", m.Image, m.Version)
	}
	if has(o.Dir, envelope, &m.Manifest) {
		return r, nil
	}
	fresh := o.Dir + ".import"
	if err := os.RemoveAll(fresh); err != nil { // of a call that was killed
		return r, refuse(ReasonStore, "%w", err)
	}
	if err := room(filepath.Dir(o.Dir), &m.Manifest); err != nil {
		return r, err
	}
	if r.Bytes, err = fill(ctx, stick, fresh, &m.Manifest, envelope, o.Progress); err != nil {
		return r, errors.Join(err, os.RemoveAll(fresh))
	}
	if err := replace(o.Dir, fresh); err != nil {
		return r, err
	}
	r.Changed = true
	return r, nil
}

// installed is the version of the image in Dir, 0 where there is none that is trusted.
func installed(o ImageOptions) uint64 {
	envelope, err := readSmall(filepath.Join(o.Dir, manifest.Envelope), manifest.MaxEnvelope)
	if err != nil {
		return 0
	}
	m, err := manifest.OpenUndated(envelope, o.Trust, 0)
	if err != nil {
		return 0
	}
	return m.Version
}

// has says whether dir holds this very image, whole.
func has(dir string, envelope []byte, m *manifest.Manifest) bool {
	old, err := readSmall(filepath.Join(dir, manifest.Envelope), manifest.MaxEnvelope)
	if err != nil || string(old) != string(envelope) {
		return false
	}
	for _, a := range m.Artefacts {
		f, err := os.Open(filepath.Join(dir, a.Name))
		if err != nil {
			return false
		}
		err = manifest.CheckArtefact(a, f)
		f.Close()
		if err != nil {
			return false
		}
	}
	return true
}

func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

func room(dir string, m *manifest.Manifest) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return refuse(ReasonStore, "%s: %w", dir, err)
	}
	need := int64(reserve)
	for _, a := range m.Artefacts {
		need += a.Size
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return refuse(ReasonSpace, "%d MB are free in %s, the image takes %d", free>>20, dir, need>>20)
	}
	return nil
}

// fill copies and checks the artefacts into dir, which is new.
func fill(ctx context.Context, stick *fat.FS, dir string, m *manifest.Manifest, envelope []byte, progress func(string, int64, int64)) (int64, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, refuse(ReasonStore, "%w", err)
	}
	var total int64
	for _, a := range m.Artefacts {
		if err := copyArtefact(ctx, stick, filepath.Join(dir, a.Name), a, progress); err != nil {
			return total, err
		}
		total += a.Size
	}
	f, err := os.OpenFile(filepath.Join(dir, manifest.Envelope), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return total, refuse(ReasonStore, "%w", err)
	}
	_, err = f.Write(envelope)
	if err := errors.Join(err, f.Sync(), f.Close(), syncDir(dir)); err != nil {
		return total, refuse(ReasonStore, "%w", err)
	}
	return total, nil
}

func copyArtefact(ctx context.Context, stick *fat.FS, path string, a manifest.Artefact, progress func(string, int64, int64)) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return refuse(ReasonStore, "%w", err)
	}
	defer f.Close()
	w := &counted{ctx: ctx, f: f, name: a.Name, total: a.Size, progress: progress}
	if err := stick.CopyFile(w, imageFolder+"/"+a.Name, a.Size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return refuse(ReasonStore, "%s: %w", a.Name, err)
	}
	// Compared as it stands in the data volume, not as it came from the stick,
	// which can give other bytes the second time.
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return refuse(ReasonStore, "%s: %w", a.Name, err)
	}
	return manifest.CheckArtefact(a, f)
}

// counted writes, and ends when it is told to.
type counted struct {
	ctx         context.Context
	f           *os.File
	name        string
	done, total int64
	progress    func(string, int64, int64)
}

func (c *counted) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.f.Write(b)
	if err != nil {
		return n, refuse(ReasonStore, "%s: %w", c.name, err)
	}
	c.done += int64(n)
	if c.progress != nil {
		c.progress(c.name, c.done, c.total)
	}
	return n, nil
}

// replace puts fresh in the place of dir in one step; what was there goes away after it.
func replace(dir, fresh string) error {
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(fresh, dir)
	}
	if err = errors.Join(err, syncDir(filepath.Dir(dir))); err != nil {
		return refuse(ReasonStore, "replace %s: %w", dir, err)
	}
	if err := os.RemoveAll(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonStore, "the image is in place; remove the old one: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
