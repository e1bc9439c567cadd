package piinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/hardware"
	"portcullis/hardware/zymbit"
	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// zymbitDir is the vendor's directory, here and in the system.
const zymbitDir = "/var/lib/zymbit"

// zymbitWait is how long the module's binding may wait for a network card: it reads
// the card's address.
const zymbitWait = 10 * time.Second

// Zymbit opens the module through the vendor's tools, which an image has when it was
// built with them.
func (l *linux) Zymbit(ctx context.Context, state *card.ZymbitState) (hardware.Root, error) {
	z, err := zymbit.NewExec(zymbit.ExecConfig{})
	if err != nil {
		return nil, err // an image without the tools, which is most of them
	}
	z.Close()
	l.drivers()
	if state != nil {
		// It lies on the card in the clear: whoever wrote it may not have a program run.
		err := boot.MountAll([]boot.Mount{{Source: "tmpfs", Target: filepath.Dir(zymbitDir), FSType: "tmpfs",
			Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "size=2m,mode=0755"}})
		if err != nil {
			return nil, err
		}
		if err := state.Write(zymbitDir); err != nil {
			return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: err}
		}
	}
	var config zymbit.ExecConfig
	if text, err := os.ReadFile(zymbit.EnvFile); err == nil {
		env, err := zymbit.ParseEnv(string(text))
		if err != nil {
			return nil, &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("%s: %w", zymbit.EnvFile, err)}
		}
		config.Env = vendorsOwn(env)
	}
	// The kernel's own number is right where the file's is of another kernel.
	if pin, err := zymbit.SysfsWakePin(os.DirFS("/sys")); err == nil {
		config.Env.WakePin = pin
	}
	if z, err = zymbit.NewExec(config); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, l.zymbitWait)
	defer cancel()
	for !ethernet() && wait.Err() == nil {
		select {
		case <-wait.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return z, nil
}

// vendorsOwn leaves the vendor's own settings: the file lies on the card in the clear,
// and LD_PRELOAD would be obeyed by every program.
func vendorsOwn(e zymbit.Env) zymbit.Env {
	e.Other = slices.DeleteFunc(slices.Clone(e.Other), func(s string) bool { return !strings.HasPrefix(s, "ZK_") })
	return e
}

func ethernet() bool {
	links, err := boot.Links()
	return err == nil && slices.ContainsFunc(links, func(l boot.Link) bool { return l.Ethernet })
}

// zymbitKept is the directory on the data volume that the running system sees as
// zymbitDir, below dataDir.
const zymbitKept = "zymbit"

// keepZymbit brings the three places of the module's state together, once the volume is
// open: the copy on the card that this boot began with, what the tools made of it in
// tools, and what the running system left on the data volume. The latest change
// counts: the tools' of this boot where the module gave its secret with it (worked), else
// the system's of the one before. A card's copy that is damaged, or was put back to an
// older one by somebody, so never takes the place of the one on the volume.
func keepZymbit(root, tools string, worked bool, conf interface {
	ZymbitState() (*card.ZymbitState, error)
	SetZymbitState(*card.ZymbitState) error
}) error {
	began, problem := conf.ZymbitState() // damaged: nil, and the other places count
	used, err := card.ReadZymbitState(tools)
	if err != nil {
		return err
	}
	dir := filepath.Join(root, dataDir, zymbitKept)
	// A link of that name on the volume is nobody's state.
	switch f, err := boot.OpenBeneath(filepath.Join(root, dataDir), zymbitKept, unix.O_PATH|unix.O_DIRECTORY); {
	case err == nil:
		f.Close()
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	kept, err := card.ReadZymbitState(dir)
	if err != nil {
		return err
	}
	latest := began
	switch {
	case worked && used != nil && !used.Equal(began):
		latest = used
	case kept != nil:
		latest = kept
	case used != nil:
		latest = used
	}
	if latest == nil {
		return problem
	}
	if !latest.Equal(kept) {
		if err := latest.Write(dir); err != nil {
			return err
		}
	}
	if !latest.Equal(began) {
		if err := conf.SetZymbitState(latest); err != nil {
			return err
		}
	}
	system := filepath.Join(root, zymbitDir)
	if _, err := os.Stat(system); errors.Is(err, os.ErrNotExist) {
		return nil // an image whose system does not speak to the module
	}
	from, err := boot.OpenBeneath(filepath.Join(root, dataDir), zymbitKept, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer from.Close()
	return boot.MountAll([]boot.Mount{
		{Source: fmt.Sprintf("/proc/self/fd/%d", from.Fd()), Target: system, Flags: unix.MS_BIND},
		{Target: system, Flags: unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC},
	})
}
