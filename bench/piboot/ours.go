package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"portcullis/images/card"
	"portcullis/lab/pi"
)

// ours boots a provisioned card of the built image.
type ours struct {
	dir   string
	card  pi.Card
	bytes int
}

func newOurs(p *pi.Provisioned) (o *ours, err error) {
	o = &ours{}
	if o.dir, err = os.MkdirTemp(filepath.Dir(filepath.Dir(p.Card.Image)), ".bench-"); err != nil {
		return nil, err
	}
	if o.card, err = p.Card.Copy(o.dir); err != nil {
		return nil, errors.Join(err, o.remove())
	}
	files, err := pi.BootFiles(o.card.Image, card.PartBootA)
	if err != nil {
		return nil, errors.Join(err, o.remove())
	}
	o.bytes = len(files[card.InitramfsFile])
	return o, nil
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

func (o *ours) remove() error { return os.RemoveAll(o.dir) }

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
	m, err := pi.Start(ctx, pi.Config{Name: "piboot", Dir: run, Card: o.card.Image, TPM: o.card.TPM})
	if err != nil {
		return times{}, err
	}
	defer m.Kill()
	if err := m.Running(ctx); err != nil {
		return times{}, err
	}
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
	return t, m.PowerOff(ctx)
}
