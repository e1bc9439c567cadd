// Package drop lets a program that was started as root become another user, with few
// capabilities, before it does anything: container engines give capabilities to root
// alone. It is for the main function, which calls it first.
package drop

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// To makes the program the user "uid:gid", without other groups, with the capabilities
// keep (of unix.CAP_…, at most 31) and no way to more. It begins the program anew under
// that user, so that no thread is left behind, and returns there: where the user is it
// already. Without an error the caller is that user.
func To(user string, keep ...uintptr) error {
	uid, gid, err := parse(user)
	if err != nil {
		return err
	}
	if os.Getuid() == uid && os.Geteuid() == uid && os.Getgid() == gid {
		return nil
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("drop: user %d cannot become %s", os.Getuid(), user)
	}
	// What follows is this thread's alone, and the new program gets what this thread has.
	runtime.LockOSThread()
	if err := become(uid, gid, keep); err != nil {
		return fmt.Errorf("drop: %w", err)
	}
	return fmt.Errorf("drop: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

func parse(user string) (uid, gid int, err error) {
	u, g, ok := strings.Cut(user, ":")
	a, err1 := strconv.ParseUint(u, 10, 31)
	b, err2 := strconv.ParseUint(g, 10, 31)
	if !ok || err1 != nil || err2 != nil || a == 0 {
		return 0, 0, fmt.Errorf("drop: %.40q is not UID:GID in numbers, of another user than 0", user)
	}
	return int(a), int(b), nil
}

func become(uid, gid int, keep []uintptr) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	// Not those of package syscall, which change every thread.
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS},
		{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
		{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	var mask uint32
	for _, c := range keep {
		mask |= 1 << c
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: mask, Permitted: mask, Inheritable: mask}}
	if _, _, errno := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return errno
	}
	for _, c := range keep {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return err
		}
	}
	return nil
}
