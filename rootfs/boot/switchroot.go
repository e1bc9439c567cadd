package boot

import (
	"os"

	"golang.org/x/sys/unix"
)

// ReasonSwitchRoot: the new root could not be entered.
const ReasonSwitchRoot Reason = "switch-root"

// SwitchRoot makes the mount at root the root of the mount namespace and
// replaces this program by argv, looked up in it. The initramfs is emptied to give
// its memory back. It returns only on failure, in an unusable system.
//
// Programs already chrooted into that same mount are not disturbed: the mount is
// moved, not copied, so their root and the namespace's root become one.
func SwitchRoot(root string, argv, env []string) error {
	fail := func(what string, err error) error { return Failf(ReasonSwitchRoot, "%s: %w", what, err) }
	if err := unix.Chdir(root); err != nil {
		return fail("enter "+root, err)
	}
	old, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("open the old root", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fail("move the new root", err)
	}
	if err := emptyInitramfs(old); err != nil {
		return fail("empty the initramfs", err)
	}
	unix.Close(old)
	if err := unix.Chroot("."); err != nil {
		return fail("chroot", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fail("chdir /", err)
	}
	return fail("exec "+argv[0], unix.Exec(argv[0], argv, env))
}

// emptyInitramfs deletes everything on the filesystem of dir, which must be a
// RAM filesystem: a wrong call must never delete a disk.
func emptyInitramfs(dir int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return err
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	return emptyDir(dir, st.Dev)
}

// emptyDir works on descriptors, so that it cannot leave dir: paths would lead
// into the mounts that lie over the initramfs.
func emptyDir(dir int, dev uint64) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != dev {
			continue // a mount point of another filesystem stays
		}
		flags := 0
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			err = emptyDir(fd, dev)
			unix.Close(fd)
			if err != nil {
				return err
			}
			flags = unix.AT_REMOVEDIR
		}
		unix.Unlinkat(dir, name, flags) // a busy mount point stays, and nothing depends on it
	}
	return nil
}

func readNames(dir int) ([]string, error) {
	// A descriptor of its own: os.File closes it.
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	defer f.Close()
	return f.Readdirnames(-1)
}
