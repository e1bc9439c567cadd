package hpcinit

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/images/manifest"
	"portcullis/rootfs/boot"
)

// memoryReserve is what must stay free beside the root image, in bytes: for
// the system that is about to start.
const memoryReserve = 192 << 20

// progressEvery is the time between two progress lines of the root image.
const progressEvery = 2 * time.Second

// fetchRoot brings the root image into sealed memory.
func fetchRoot(ctx context.Context, log *boot.StageLog, src Source, m *manifest.Verified) (*boot.Image, error) {
	a, _ := m.Artefact(manifest.Root) // Validate has made sure that it is there
	free, err := boot.AvailableMemory()
	if err != nil {
		return nil, boot.Failf(boot.ReasonMemory, "%w", err)
	}
	if a.Size+memoryReserve > free {
		return nil, boot.Failf(boot.ReasonMemory, "the root image has %d MiB and %d MiB are kept for the system, %d MiB are free",
			a.Size>>20, int64(memoryReserve)>>20, free>>20)
	}
	image, err := boot.NewImage(manifest.Root, a.Size)
	if err != nil {
		return nil, err
	}
	d := &download{src: src, artefact: a, dst: image.Bytes, lim: DefaultFetchLimits}
	stop := showProgress(log, d)
	start := time.Now()
	err = d.run(ctx)
	stop()
	if err == nil {
		err = image.Seal()
	}
	if err != nil {
		image.Close()
		return nil, err
	}
	log.Stage(StageRoot, "bytes", a.Size, "seconds", fmt.Sprintf("%.2f", time.Since(start).Seconds()), "resumes", d.resumes)
	return image, nil
}

// showProgress prints a line from time to time until its result is called.
func showProgress(log *boot.StageLog, d *download) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				log.Note("progress", "artefact", d.artefact.Name, "bytes", d.received.Load(), "of", d.artefact.Size)
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// Where the pieces of the new root lie in the initramfs.
const (
	lowerDir = "/image"    // squashfs
	upperDir = "/writable" // tmpfs of the overlay
	newRoot  = "/sysroot"
)

// upperSize bounds what the system can write over its root, as a tmpfs size.
const upperSize = "50%"

// verityName names the device-mapper device.
const verityName = "root"

// devices are the block devices below the new root.
type devices struct{ loop, verity string }

// mountRoot puts the sealed image behind loop and verity devices and mounts
// the new root at newRoot: the image below, RAM above.
func mountRoot(image *boot.Image, v boot.Verity) (devices, error) {
	var d devices
	var err error
	if d.loop, err = boot.AttachLoop(image.File); err != nil {
		return d, err
	}
	if err := image.Close(); err != nil {
		return d, boot.Failf(boot.ReasonLoop, "%w", err)
	}
	if d.verity, err = boot.OpenVerity(verityName, d.loop, v); err != nil {
		return d, err
	}
	err = boot.MountAll([]boot.Mount{{Source: d.verity, Target: lowerDir, FSType: "squashfs", Flags: unix.MS_RDONLY | unix.MS_NODEV}})
	if err != nil {
		return d, err
	}
	return d, boot.Overlay(lowerDir, upperDir, newRoot, upperSize)
}
