package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Mount is one mount of an early root. Target is made when it is missing.
type Mount struct {
	Source string
	Target string
	FSType string
	Flags  uintptr
	Data   string
}

// ReasonMount: a mount was refused by the kernel.
const ReasonMount Reason = "mount"

// APIMounts are the kernel's own filesystems. Once Moved, they are those of the real root.
var APIMounts = []Mount{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%"},
}

// MountAll mounts in order and stops at the first error. One that the kernel
// has mounted itself (devtmpfs with CONFIG_DEVTMPFS_MOUNT) counts as done.
func MountAll(mounts []Mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.Target, 0o755); err != nil {
			return Failf(ReasonMount, "make %s: %w", m.Target, err)
		}
		err := unix.Mount(m.Source, m.Target, m.FSType, m.Flags, m.Data)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return Failf(ReasonMount, "mount %s on %s: %w", m.FSType, m.Target, err)
		}
	}
	return nil
}

// MoveAll moves mounts to the same paths below root.
func MoveAll(mounts []Mount, root string) error {
	for _, m := range mounts {
		if err := unix.Mount(m.Target, root+m.Target, "", unix.MS_MOVE, ""); err != nil {
			return Failf(ReasonMount, "move %s to %s: %w", m.Target, root+m.Target, err)
		}
	}
	return nil
}

// Overlay mounts a writable root at target: lower read-only below, a tmpfs of
// at most size (a tmpfs size such as "50%" or "512m") above. scratch is where
// that tmpfs is mounted meanwhile; both it and lower are detached again, since
// overlayfs holds its layers by itself: nothing in the running system can then
// reach the upper layer behind the overlay's back.
func Overlay(lower, scratch, target, size string) error {
	err := MountAll([]Mount{{"tmpfs", scratch, "tmpfs", unix.MS_NODEV, "mode=0755,size=" + size}})
	if err != nil {
		return err
	}
	for _, d := range []string{scratch + "/upper", scratch + "/work", target} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return Failf(ReasonMount, "make %s: %w", d, err)
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, scratch, scratch)
	if err := MountAll([]Mount{{"root", target, "overlay", 0, data}}); err != nil {
		return err
	}
	for _, d := range []string{scratch, lower} {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
			return Failf(ReasonMount, "detach %s: %w", d, err)
		}
	}
	return nil
}

// OverlayDirs makes directories of a read-only root writable: each of them, given
// relative to root, gets an overlay of itself below and a shared tmpfs of at most
// size above. scratch is where that tmpfs is mounted meanwhile, as in Overlay.
func OverlayDirs(root, scratch, size string, dirs ...string) error {
	err := MountAll([]Mount{{"tmpfs", scratch, "tmpfs", unix.MS_NODEV, "mode=0755,size=" + size}})
	if err != nil {
		return err
	}
	for _, d := range dirs {
		upper, work, target := scratch+"/"+d+"/upper", scratch+"/"+d+"/work", root+"/"+d
		for _, m := range []string{upper, work} {
			if err := os.MkdirAll(m, 0o755); err != nil {
				return Failf(ReasonMount, "make %s: %w", m, err)
			}
		}
		data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", target, upper, work)
		if err := unix.Mount(d, target, "overlay", unix.MS_NODEV, data); err != nil {
			return Failf(ReasonMount, "mount overlay on %s: %w", target, err)
		}
	}
	if err := unix.Unmount(scratch, unix.MNT_DETACH); err != nil {
		return Failf(ReasonMount, "detach %s: %w", scratch, err)
	}
	return nil
}
