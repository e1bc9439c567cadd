// Command guest is init of a virtual machine whose kernel has 802.1Q: it runs tests of
// gatewayd there, prints what they say, and switches the machine off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/rootfs/boot/boottest"
)

func main() {
	if err := boottest.Prepare("/tmp", "/run"); err != nil {
		fmt.Println("guest:", err)
	} else {
		tests()
	}
	unix.Sync()
	fmt.Println("guest:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
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
