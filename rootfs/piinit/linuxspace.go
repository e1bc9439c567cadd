package piinit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// Where the pieces of the new root lie.
const (
	newRoot    = "/sysroot"
	scratchDir = "/writable"
	dataDir    = "/var/lib/portcullis"

	// upperSize bounds what the system can write over /etc and /var, as a tmpfs size.
	upperSize = "30%"
)

// linuxSpace is the open volume of a real machine.
type linuxSpace struct {
	a, b, data *blockFile
	verity     string // device of the verified system
}

// System returns a slot's device.
func (s *linuxSpace) System(slot card.Slot) Disk {
	if slot == card.SlotB {
		return s.b
	}
	return s.a
}

// Data returns the device of the data volume.
func (s *linuxSpace) Data() Disk { return s.data }

// OpenVerity makes the verity device over a slot.
func (s *linuxSpace) OpenVerity(slot card.Slot, v boot.Verity) (io.ReaderAt, error) {
	under := s.a
	if slot == card.SlotB {
		under = s.b
	}
	path, err := boot.OpenVerity(card.MapperRoot, under.Name(), v)
	if err != nil {
		return nil, err
	}
	s.verity = path
	if err := linkMapper(card.MapperRoot, path); err != nil {
		return nil, err
	}
	return openBlock(path, true)
}

// MountSystem mounts the verified system.
func (s *linuxSpace) MountSystem() error {
	return boot.MountAll([]boot.Mount{{Source: s.verity, Target: newRoot, FSType: "squashfs", Flags: unix.MS_RDONLY | unix.MS_NODEV}})
}

// Format makes the data volume's file system. The journal and a tenth of a percent
// for root are enough; tables are initialised later, in the running system.
func (s *linuxSpace) Format(ctx context.Context, uuid string) error {
	_, err := s.tool(ctx, "/usr/sbin/mkfs.ext4", "-q", "-F", "-L", "portcullis-data", "-U", uuid, "-m", "0.1",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", s.data.Name())
	return err
}

// Exit codes of e2fsck(8), which are bits.
const (
	fsckCorrected   = 1
	fsckRestart     = 2
	fsckUncorrected = 4
)

// Check repairs the data volume as e2fsck does by itself; what it would rather ask a
// person about is answered with yes, because nobody sits here, and reported.
func (s *linuxSpace) Check(ctx context.Context) (repaired bool, err error) {
	if cleanExt4(s.data) {
		return false, nil
	}
	code, err := s.tool(ctx, "/usr/sbin/e2fsck", "-p", s.data.Name())
	if code == fsckUncorrected {
		code, err = s.tool(ctx, "/usr/sbin/e2fsck", "-y", s.data.Name())
		repaired = true
	}
	if code&^(fsckCorrected|fsckRestart) != 0 {
		return repaired, err
	}
	return repaired || code != 0, nil
}

// tool runs a program of the verified system, in it, and returns its exit code.
func (s *linuxSpace) tool(ctx context.Context, argv ...string) (code int, err error) {
	dev := filepath.Join(newRoot, "dev")
	if err := unix.Mount("/dev", dev, "", unix.MS_BIND, ""); err != nil {
		return -1, fmt.Errorf("bind %s: %w", dev, err)
	}
	defer unix.Unmount(dev, unix.MNT_DETACH)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: newRoot}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), fmt.Errorf("%s: %w: %s", argv[0], err, lastLine(out.String()))
	}
	return -1, fmt.Errorf("%s: %w", argv[0], err)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// LateModulesPath lists the modules to load out of the verified system, where the
// initramfs is better off without them; absent where there are none.
const LateModulesPath = "/etc/portcullis/late-modules"

// lateModules loads them. dm-verity has checked what is read, and the kernel checks
// their signatures as it does all others'.
func lateModules() error {
	list, err := os.ReadFile(LateModulesPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return boot.Failf(boot.ReasonModules, "%w", err)
	}
	paths, err := boot.ParseModules(string(list))
	if err != nil {
		return err
	}
	for i := range paths {
		paths[i] = filepath.Join(newRoot, paths[i])
	}
	var errs []error
	for _, r := range boot.LoadModules(paths) {
		errs = append(errs, r.Err)
	}
	if err := errors.Join(errs...); err != nil {
		return boot.Failf(boot.ReasonModules, "%w", err)
	}
	return nil
}

// MountData makes /etc and /var writable in memory and mounts the data volume in
// /var.
func (s *linuxSpace) MountData() error {
	if err := lateModules(); err != nil {
		return err
	}
	if err := boot.OverlayDirs(newRoot, scratchDir, upperSize, "etc", "var"); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOATIME)
	err := boot.MountAll([]boot.Mount{{Source: s.data.Name(), Target: newRoot + dataDir, FSType: "ext4", Flags: flags}})
	if err != nil {
		return err
	}
	// By handle, and not by a path that a link on the volume may lead elsewhere.
	images, err := boot.DirBeneath(newRoot+dataDir, "images", 0o755)
	if err != nil {
		return boot.Failf(boot.ReasonMount, "%w", err)
	}
	return images.Close()
}
