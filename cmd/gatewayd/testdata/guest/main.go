// Command guest is init of a virtual machine whose kernel has 802.1Q: it runs tests of
// gatewayd there, prints what they say, and switches the machine off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/rootfs/boot"
)

func main() {
	if err := prepare(); err != nil {
		fmt.Println("guest:", err)
	} else {
		tests()
	}
	unix.Sync()
	fmt.Println("guest:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func prepare() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	b, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	paths, err := boot.ParseModules(string(b))
	if err != nil {
		return err
	}
	for _, r := range boot.LoadModules(paths) {
		if r.Err != nil {
			return fmt.Errorf("%s: %w", r.Path, r.Err)
		}
	}
	return nil
}

func tests() {
	args, err := os.ReadFile("/args")
	if err != nil {
		fmt.Println("guest:", err)
		return
	}
	c := exec.Command("/src/cmd/gatewayd/gatewayd.test", strings.Fields(string(args))...)
	c.Dir = "/src/cmd/gatewayd"
	c.Env = []string{"PATH=/usr/sbin", "HOME=/tmp", "PORTCULLIS_TEST_VLAN=1", "PORTCULLIS_TEST_PROGRAM=/src/gatewayd"}
	c.Stdout, c.Stderr = os.Stdout, os.Stdout
	if err := c.Run(); err != nil {
		fmt.Println("guest:", err)
	}
}
