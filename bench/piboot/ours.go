package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

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

// runInit is the kernel's last word before PID 1 of the initramfs.
var runInit = regexp.MustCompile(`\[ *([0-9.]+)\] Run /init as init process`)

// boot returns the seconds from the start of the initramfs to the mounted root
// and to switch_root, by the guest's clock.
func (o *ours) boot(ctx context.Context) (mounted, switched float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	run, err := os.MkdirTemp("", "piboot-")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(run)
	m, err := pi.Start(ctx, pi.Config{Name: "piboot", Dir: run, Card: o.card.Image, TPM: o.card.TPM})
	if err != nil {
		return 0, 0, err
	}
	defer m.Kill()
	if err := m.Running(ctx); err != nil {
		return 0, 0, err
	}
	log, err := m.Output(ctx, "dmesg")
	if err != nil {
		return 0, 0, err
	}
	begin, err := seconds(runInit, log)
	if err != nil {
		return 0, 0, err
	}
	at := map[string]float64{}
	for _, s := range pi.Stages(m.Console().Text()) {
		at[s.Name] = s.Seconds
	}
	// Stage verity is told once the root is mounted.
	if at["verity"] == 0 || at["switch-root"] == 0 {
		return 0, 0, fmt.Errorf("the console has no stage verity or switch-root: %v", at)
	}
	return at["verity"] - begin, at["switch-root"] - begin, m.PowerOff(ctx)
}

func seconds(re *regexp.Regexp, text string) (float64, error) {
	m := re.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%s is not in %q", re, text[max(0, len(text)-2000):])
	}
	return strconv.ParseFloat(m[1], 64)
}
