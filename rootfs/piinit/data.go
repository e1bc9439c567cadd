package piinit

import (
	"bytes"
	"context"
	"time"

	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// checkLimit bounds the check of the data volume.
const checkLimit = 10 * time.Minute

// mountData checks the data volume, which first boot has made, and mounts it. It is
// never made anew here: what cannot be repaired is a person's to decide about.
func (b *Boot) mountData(ctx context.Context, s Space) error {
	b.begin(StageData)
	repaired := false
	if !b.hand.FirstBoot {
		b.Allow(checkLimit)
		var err error
		if repaired, err = s.Check(ctx); err != nil {
			return boot.Failf(ReasonData, "%w", err)
		}
	}
	b.Allow(stepLimit)
	if err := s.MountData(); err != nil {
		return boot.Failf(ReasonData, "%w", err)
	}
	b.Log.Stage(b.stage, "mib", s.Data().Size()>>20, "repaired", yesNo(repaired))
	return nil
}

// seed reads the operator's settings and their text; wrong ones are reported and count as none.
func (b *Boot) seed() (*card.Seed, []byte) {
	text, err := b.conf.SeedText()
	if err == nil && text == nil {
		return nil, nil
	}
	var s *card.Seed
	if err == nil {
		s, err = card.ParseSeed(card.SeedFile, text)
	}
	if err != nil {
		b.Log.Note("seed", "problem", err)
		return nil, nil
	}
	return s, bytes.TrimRight(text, "\n")
}
