package pi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/manifest"
)

// ImportLabel is the label of a volume whose content the Pi takes in.
const ImportLabel = "PCIMPORT"

// importDir is the directory of such a volume that holds the PC's image.
const importDir = "hpc"

// Loaded returns a copy of a provisioned card onto which the Pi has taken the
// PC's image in the directory image, from a disk with the label PCIMPORT. It is
// done once for a card and an image.
func (b *Builder) Loaded(ctx context.Context, p *Provisioned, image string) (Card, error) {
	envelope, err := os.ReadFile(filepath.Join(image, manifest.Envelope))
	if err != nil {
		return Card{}, fmt.Errorf("pi: the PC's image: %w", err)
	}
	key := sha256.Sum256(append([]byte(p.Image.Digest+p.Gateway+"\x00"), envelope...))
	name := "loaded-" + hex.EncodeToString(key[:8])
	unlock, err := b.lock(ctx, name)
	if err != nil {
		return Card{}, err
	}
	defer unlock()
	dir := b.dir(name)
	if _, err := os.Stat(InDir(dir).Image); err == nil {
		now := time.Now()
		os.Chtimes(dir, now, now)
		return InDir(dir), nil
	}
	tmp, err := os.MkdirTemp(b.dir(""), ".card-")
	if err != nil {
		return Card{}, fmt.Errorf("pi: %w", err)
	}
	defer os.RemoveAll(tmp)
	b.say("the PC's image onto the card")
	c, err := p.Card.Copy(tmp)
	if err != nil {
		return Card{}, err
	}
	if err := load(ctx, c, p.Firmware, image); err != nil {
		return Card{}, fmt.Errorf("pi: giving the Pi the PC's image: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return Card{}, fmt.Errorf("pi: %w", err)
	}
	b.prune("loaded-*/card.img")
	return InDir(dir), nil
}

// load boots the card with the disk plugged in and waits for the image.
func load(ctx context.Context, c Card, firmware Firmware, image string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	run, err := os.MkdirTemp("", "pi-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(run)
	disk := filepath.Join(run, "import.img")
	if err := ImportDisk(disk, image); err != nil {
		return err
	}
	m, err := Start(ctx, Config{Name: "import", Dir: run, Firmware: firmware, Card: c.Image, TPM: c.TPM, Disks: []string{disk}})
	if err != nil {
		return err
	}
	defer m.Kill()
	if err := m.Running(ctx); err != nil {
		return err
	}
	for {
		r, err := m.Exec(ctx, "test", "-e", "/var/lib/portcullis/images/hpc/"+manifest.Envelope)
		if err != nil {
			return fmt.Errorf("%w; console:\n%s", err, m.Console().tail())
		}
		if r.Exit == 0 {
			return m.PowerOff(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the Pi does not take it: %w", ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// ImportDisk writes a disk image with one FAT volume labelled PCIMPORT that holds
// the PC's image of the directory image.
func ImportDisk(path, image string) (err error) {
	var files []fat.File
	size := int64(64 << 20)
	for _, name := range []string{manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root, manifest.Envelope} {
		f, err := os.Open(filepath.Join(image, name))
		if err != nil {
			return fmt.Errorf("pi: the PC's image: %w", err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		size += st.Size()
		files = append(files, fat.File{Path: importDir + "/" + name, Size: st.Size(), Content: f})
	}
	size = (size + card.Align - 1) / card.Align * card.Align
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("pi: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return err
	}
	return fat.BuildFiles(out, fat.Options{Size: size, Label: ImportLabel, ID: 0x50434931}, files)
}
