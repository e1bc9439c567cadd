package hpcinit

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// imaPolicy has the kernel measure whatever is executed, mapped as code or loaded
// into it, on every file system (Documentation/ABI/testing/ima_policy). Debian's
// kernel takes a policy once in a boot: nobody can change it afterwards.
var imaPolicy = []string{
	"measure func=BPRM_CHECK",
	"measure func=MMAP_CHECK mask=MAY_EXEC",
	"measure func=MODULE_CHECK",
	"measure func=FIRMWARE_CHECK",
	"measure func=KEXEC_KERNEL_CHECK",
	"measure func=KEXEC_INITRAMFS_CHECK",
	"measure func=POLICY_CHECK",
}

// setIMA loads the policy before anything of the root is executed. The file
// system is opened without a mount: systemd mounts its own.
func setIMA() error {
	fail := func(what string, err error) error { return fmt.Errorf("measurement policy: %s: %w", what, err) }
	fs, err := unix.Fsopen("securityfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("open securityfs", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail("create securityfs", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fail("mount securityfs", err)
	}
	defer unix.Close(mnt)
	fd, err := unix.Openat(mnt, "integrity/ima/policy", unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fail("open the policy", err)
	}
	f := os.NewFile(uintptr(fd), "policy")
	// The whole policy in one write; closing it makes it the kernel's.
	if _, err := f.WriteString(strings.Join(imaPolicy, "\n") + "\n"); err != nil {
		f.Close()
		return fail("write the policy", err)
	}
	if err := f.Close(); err != nil {
		return fail("load the policy", err)
	}
	return nil
}
