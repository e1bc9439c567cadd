// Command init is PID 1 of the test's PC: it prints the TPM's registers and the
// firmware's event log on the console and turns the PC off.
package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	for _, m := range []struct{ kind, at string }{{"sysfs", "/sys"}, {"securityfs", "/sys/kernel/security"}, {"proc", "/proc"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			fmt.Println("PCRTEST error", m.kind, err)
		}
	}
	for i := range 16 {
		b, err := os.ReadFile(fmt.Sprintf("/sys/class/tpm/tpm0/pcr-sha256/%d", i))
		if err != nil {
			fmt.Println("PCRTEST error", err)
			break
		}
		fmt.Printf("PCRTEST pcr %d %s", i, b)
	}
	if b, err := os.ReadFile("/proc/cmdline"); err == nil {
		fmt.Printf("PCRTEST cmdline %s", b)
	}
	b, err := os.ReadFile("/sys/kernel/security/tpm0/binary_bios_measurements")
	if err != nil {
		fmt.Println("PCRTEST error", err)
	}
	// A console line of many kilobytes would be torn; the reader joins these.
	for text := base64.StdEncoding.EncodeToString(b); text != ""; {
		n := min(100, len(text))
		fmt.Println("PCRTEST log", text[:n])
		text = text[n:]
	}
	fmt.Println("PCRTEST end")
	time.Sleep(200 * time.Millisecond) // the serial port empties
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
