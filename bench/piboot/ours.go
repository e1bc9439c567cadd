package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"portcullis/images/card"
	"portcullis/lab/pi"
)

// ours boots copies of a provisioned card of the built image.
type ours struct {
	card  pi.Card
	bytes int
}

func newOurs(p *pi.Provisioned) (*ours, error) {
	files, err := pi.BootFiles(p.Card.Image, card.PartBootA)
	if err != nil {
		return nil, err
	}
	return &ours{p.Card, len(files[card.InitramfsFile])}, nil
}

// pi4Bytes is the size of the initramfs in the Pi 4's image.
func pi4Bytes(ctx context.Context, b *pi.Builder) (int, error) {
	img, err := b.Image(ctx, pi.Variant{Model: card.ModelPi4})
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(filepath.Join(img.Dir, "boot", card.InitramfsFile))
	if err != nil {
		return 0, err
	}
	return int(st.Size()), nil
}

// twoClocks has the guest write its uptime into the kernel's log. pi-init's stages
// are told by the one, the kernel's lines and the peer's by the other, and the two are
// half a second apart on an emulated machine: ticks that were lost early in the boot.
const twoClocks = "read -r up rest </proc/uptime; echo PIBOOT uptime=$up >/dev/kmsg; dmesg"

var (
	uptimeAt = regexp.MustCompile(`\[ *([0-9.]+)\] PIBOOT uptime=`)
	uptime   = regexp.MustCompile(`PIBOOT uptime=([0-9.]+)`)
)

// boot returns the times from the start of the initramfs to the mounted root and to
// switch_root.
func (o *ours) boot(ctx context.Context) (times, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	run, err := os.MkdirTemp("", "piboot-")
	if err != nil {
		return times{}, err
	}
	defer os.RemoveAll(run)
	// Every boot begins with the card as it was shut down.
	c, err := o.card.Copy(run)
	if err != nil {
		return times{}, err
	}
	m, err := pi.Start(ctx, pi.Config{Name: "piboot", Dir: run, Card: c.Image, TPM: c.TPM})
	if err != nil {
		return times{}, err
	}
	defer m.Kill()
	log, err := m.Output(ctx, "sh", "-c", twoClocks)
	if err != nil {
		return times{}, err
	}
	// What has to be added to a time of pi-init's.
	logged, err := seconds(uptimeAt, log)
	if err != nil {
		return times{}, err
	}
	up, err := seconds(uptime, log)
	if err != nil {
		return times{}, err
	}
	ahead := logged - up
	at := map[string]float64{}
	for _, s := range pi.Stages(m.Console().Text()) {
		at[s.Name] = s.Seconds
	}
	// Stage verity is told once the root is mounted.
	if at["verity"] == 0 || at["switch-root"] == 0 {
		return times{}, fmt.Errorf("the console has no stage verity or switch-root: %v", at)
	}
	t, err := since(log, at["verity"]+ahead)
	if err != nil {
		return times{}, err
	}
	t.HandOver = at["switch-root"] + ahead - (t.Kernel - t.Mounted)
	return t, nil
}
