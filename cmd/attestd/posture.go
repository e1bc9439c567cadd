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
// Beside it stand warnings: what an operator has to know of this Pi who has not asked for it.
func postureOf(runDir string) (hardware.Posture, []string, error) {
	f, err := os.Open(filepath.Join(runDir, filepath.Base(card.HandoverPath)))
	if errors.Is(err, fs.ErrNotExist) {
		return hardware.PostureNone, nil, nil
	}
	if err != nil {
		return hardware.PostureNone, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, card.MaxHandover+1))
	if err != nil {
		return hardware.PostureNone, nil, err
	}
	h, err := card.ParseHandover(b)
	if err != nil {
		return hardware.PostureNone, nil, err
	}
	warn := warnings(h)
	p, err := hardware.ParsePosture(h.Posture)
	if err != nil || h.Recovered || h.Backend == "" {
		return hardware.PostureNone, warn, err
	}
	switch h.UnlockedBy {
	case card.UnlockedByChip, card.UnlockedByZymbit, card.UnlockedByCombined, card.UnlockedByEnrol:
		return p, warn, nil
	}
	// A token of systemd-cryptenroll is bound to no release and to no counter, and
	// whoever had the chip once can make one, with a volume of theirs.
	return hardware.PostureNone, warn, nil
}

// Warnings about the Pi, beside its posture.
const (
	warnReEnrolled = "the Pi's card was enrolled anew on a chip that had kept another card's key: if you did not write the card anew, somebody did"
	warnUncapped   = "the Pi's chip failed in this boot and could not be closed: root on the Pi may get its key"
)

func warnings(h *card.Handover) (out []string) {
	if h.ReEnrolled {
		out = append(out, warnReEnrolled)
	}
	if h.Uncapped {
		out = append(out, warnUncapped)
	}
	return out
}
