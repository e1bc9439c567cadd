package piinit

import (
	"context"
	"fmt"
	"io"
	"time"

	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// Limits of the long steps of a first boot.
const (
	formatLimit = 5 * time.Minute
	copyStep    = 1 << 20 // bytes
)

// progressEvery is the time between two progress lines.
const progressEvery = 2 * time.Second

// imageSize is the length of root.img in bytes: data, then the tree of 128 digests a block.
func imageSize(v boot.Verity) int64 {
	tree := uint64(0)
	for level := v.DataBlocks; level > 1; {
		level = (level + 127) / 128
		tree += level
	}
	return int64(v.HashStart+tree) * boot.BlockSize
}

// copySystem copies the seed through the encryption into this boot's slot.
func (e *enrolment) copySystem(ctx context.Context) error {
	b := e.b
	seed, err := b.card.Partition(card.PartSeed)
	if err != nil {
		return err
	}
	n := imageSize(b.verity)
	if n > seed.Size() || n > card.SystemSize {
		return boot.Failf(ReasonCopy, "the system has %d bytes, the seed partition %d, a slot %d", n, seed.Size(), card.SystemSize)
	}
	slot := e.space.System(b.decision.Slot)
	start := time.Now()
	err = b.stream(ctx, seed, n, func(p []byte, at int64) error {
		_, err := slot.WriteAt(p, at)
		return err
	})
	if err == nil {
		b.Allow(formatLimit) // a card may have a lot to catch up with
		err = slot.Sync()
	}
	if err != nil {
		return boot.Failf(ReasonCopy, "%w", err)
	}
	b.Log.Stage(b.stage, "bytes", n, "seconds", seconds(start))
	return nil
}

// verify reads back through dm-verity what was copied, every block of it: from the
// card, through the encryption, against the root hash of the command line.
func (e *enrolment) verify(ctx context.Context) error {
	b := e.b
	r, err := e.space.OpenVerity(b.decision.Slot, b.verity)
	if err != nil {
		return err
	}
	start := time.Now()
	n := int64(b.verity.DataBlocks) * boot.BlockSize
	if err := b.stream(ctx, r, n, func([]byte, int64) error { return nil }); err != nil {
		return boot.Failf(ReasonSeedRoot, "the copy is not the system of release %d: %w", b.Info.Sequence, err)
	}
	if err := e.space.MountSystem(); err != nil {
		return err
	}
	b.Log.Stage(b.stage, "bytes", n, "seconds", seconds(start), "root", b.verity.RootHash)
	return nil
}

func seconds(since time.Time) string { return fmt.Sprintf("%.2f", time.Since(since).Seconds()) }

// stream reads n bytes in steps; every step feeds the watchdog.
func (b *Boot) stream(ctx context.Context, r io.ReaderAt, n int64, sink func(p []byte, at int64) error) error {
	buf := make([]byte, min(n, copyStep))
	said := time.Now()
	for at := int64(0); at < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), n-at)]
		if got, err := r.ReadAt(p, at); got != len(p) {
			return fmt.Errorf("read at byte %d: %w", at, err)
		}
		if err := sink(p, at); err != nil {
			return fmt.Errorf("write at byte %d: %w", at, err)
		}
		at += int64(len(p))
		b.Allow(stepLimit)
		if time.Since(said) >= progressEvery {
			said = time.Now()
			b.Log.Note("progress", "stage", b.stage, "bytes", at, "of", n)
		}
	}
	return nil
}
