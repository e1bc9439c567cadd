// Package boottest is the beginning of init in the virtual machines of tests.
package boottest

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"portcullis/rootfs/boot"
)

// ModuleList is the file of the initramfs that names the modules to load, one path a line.
const ModuleList = "/modules"

// Prepare mounts proc, sysfs, devtmpfs and a tmpfs at each of temporary, and loads the
// modules of ModuleList in their order.
func Prepare(temporary ...string) error {
	mounts := [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}}
	for _, at := range temporary {
		mounts = append(mounts, [2]string{"tmpfs", at})
	}
	for _, m := range mounts {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	b, err := os.ReadFile(ModuleList)
	if err != nil {
		return err
	}
	paths, err := boot.ParseModules(string(b))
	if err != nil {
		return fmt.Errorf("%s: %w", ModuleList, err)
	}
	for _, r := range boot.LoadModules(paths) {
		if r.Err != nil {
			return fmt.Errorf("%s: %w", r.Path, r.Err)
		}
	}
	return nil
}
