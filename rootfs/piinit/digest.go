package piinit

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"sync"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/rootfs/boot"
)

// bootDigest is the digest of the boot partition, which takes longest of all that the
// chip waits for: it is computed while the chip's drivers are being loaded.
type bootDigest struct {
	cancel context.CancelFunc
	done   chan struct{}
	sum    [32]byte
	err    error
}

// startDigest begins to read the boot partition.
func (b *Boot) startDigest(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	d := &bootDigest{cancel: cancel, done: make(chan struct{})}
	b.digest = d
	v, err := b.bootVolume()
	if err != nil {
		d.err = err
		close(d.done)
		return
	}
	go func() {
		defer close(d.done)
		d.err = boot.Guard(func() (err error) {
			d.sum, err = digestOf(ctx, v)
			return err
		})
	}()
}

// wait returns the digest.
func (d *bootDigest) wait() ([32]byte, error) {
	<-d.done
	return d.sum, d.err
}

// dropDigest ends a computation that nobody waits for any more.
func (b *Boot) dropDigest() {
	if b.digest != nil {
		b.digest.cancel()
		<-b.digest.done
		b.digest = nil
	}
}

// digestOf computes card.MeasuredDigest of a boot partition, its files side by side.
func digestOf(ctx context.Context, v *fat.FS) ([32]byte, error) {
	list, err := v.List()
	if err != nil {
		return [32]byte{}, boot.Failf(ReasonBootFiles, "%w", err)
	}
	sizes := map[string]int64{}
	var paths []string
	for _, e := range list {
		if !e.Dir {
			paths, sizes[e.Path] = append(paths, e.Path), e.Size
		}
	}
	paths = card.Measured(paths)
	files, errs := make([]card.BootFile, len(paths)), make([]error, len(paths))
	room := int64(card.BootSize)
	var all sync.WaitGroup
	for i, p := range paths {
		if room -= sizes[p]; room < 0 {
			errs[i] = boot.Failf(ReasonBootFiles, "the files are larger than the partition")
			break
		}
		all.Go(func() {
			errs[i] = boot.Guard(func() error {
				h := sha256.New()
				if err := v.CopyFile(stopper{ctx, h}, p, sizes[p]); err != nil {
					return boot.Failf(ReasonBootFiles, "%s: %w", p, err)
				}
				files[i] = card.BootFile{Path: p, Size: sizes[p], SHA256: [32]byte(h.Sum(nil))}
				return nil
			})
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return [32]byte{}, err
	}
	return card.BootDigestOf(files), nil
}

// stopper stops a copy when its context ends.
type stopper struct {
	ctx context.Context
	to  io.Writer
}

func (s stopper) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.to.Write(p)
}
