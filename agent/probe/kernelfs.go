package probe

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// special reads a file of a kernel file system through a mount that no path
// leads to: an attacker cannot put another file in its place, and nothing
// changes for the rest of the machine (fsopen(2), Linux 5.2).
func special(fstype, name string) ([]byte, error) {
	f, err := openSpecial(fstype, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// specialDir lists a directory of such a file system.
func specialDir(fstype, name string) ([]string, error) {
	f, err := openSpecial(fstype, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func openSpecial(fstype, name string) (*os.File, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open file system %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create file system %s: %w", fstype, err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount file system %s: %w", fstype, err)
	}
	defer unix.Close(mnt)
	fd, err := unix.Openat(mnt, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of %s: %w", name, fstype, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// clocks reads the raw clock in ns, the time since boot and the wall clock in ms.
func clocks() (raw, boot, wall int64, err error) {
	var r, b, w unix.Timespec
	for _, c := range []struct {
		id int32
		to *unix.Timespec
	}{{unix.CLOCK_MONOTONIC_RAW, &r}, {unix.CLOCK_BOOTTIME, &b}, {unix.CLOCK_REALTIME, &w}} {
		if err := unix.ClockGettime(c.id, c.to); err != nil {
			return 0, 0, 0, fmt.Errorf("clock %d: %w", c.id, err)
		}
	}
	return r.Nano(), b.Nano() / 1e6, w.Nano() / 1e6, nil
}
