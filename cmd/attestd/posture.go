package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"portcullis/hardware"
	"portcullis/images/card"
)

// postureOf returns what may be said beside a verdict of how this Pi was started:
// what pi-init left in runDir. Without that, and after a boot that the chip did
// not open, it is none: a person with the recovery key opens a card anywhere.
func postureOf(runDir string) (hardware.Posture, error) {
	f, err := os.Open(filepath.Join(runDir, filepath.Base(card.HandoverPath)))
	if errors.Is(err, fs.ErrNotExist) {
		return hardware.PostureNone, nil
	}
	if err != nil {
		return hardware.PostureNone, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, card.MaxHandover+1))
	if err != nil {
		return hardware.PostureNone, err
	}
	h, err := card.ParseHandover(b)
	if err != nil {
		return hardware.PostureNone, err
	}
	p, err := hardware.ParsePosture(h.Posture)
	if err != nil || h.Recovered || h.Backend == "" {
		return hardware.PostureNone, err
	}
	switch h.UnlockedBy {
	case card.UnlockedByChip, card.UnlockedByZymbit, card.UnlockedByCombined, card.UnlockedByEnrol:
		return p, nil
	}
	// A token of systemd-cryptenroll is bound to no release and to no counter, and
	// whoever had the chip once can make one, with a volume of theirs.
	return hardware.PostureNone, nil
}
