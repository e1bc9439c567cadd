// Package down takes the PC down: at once, as the gateway asked. cmd/hpc-agent is
// the only one that may call it.
package down

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// syncTime is what the disks get. A task's data is lost with the PC anyway, and a disk
// that hangs must not keep a PC up that is not believed any more.
const syncTime = 2 * time.Second

// Now reboots the machine or powers it off. It does not ask the rest of the
// system: what runs there may be the reason. It returns only when the kernel refuses.
func Now(off bool) error {
	done := make(chan struct{})
	go func() {
		unix.Sync()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(syncTime):
	}
	command := unix.LINUX_REBOOT_CMD_RESTART
	if off {
		command = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	if err := unix.Reboot(command); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	return nil
}
