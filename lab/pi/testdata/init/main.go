// Command init is PID 1 of the test's Pi: it prints its command line and does
// what is typed.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		fmt.Println("PITEST error", err)
	}
	b, err := os.ReadFile("/proc/cmdline")
	fmt.Println("PITEST cmdline", strings.TrimSpace(string(b)), err)
	in := bufio.NewScanner(os.Stdin)
	for fmt.Println("PITEST ready"); in.Scan(); fmt.Println("PITEST ready") {
		what := map[string]int{"reboot": unix.LINUX_REBOOT_CMD_RESTART, "poweroff": unix.LINUX_REBOOT_CMD_POWER_OFF}[in.Text()]
		if what == 0 {
			fmt.Printf("PITEST said %q\n", in.Text())
			continue
		}
		time.Sleep(100 * time.Millisecond) // the serial port empties
		if err := unix.Reboot(what); err != nil {
			fmt.Println("PITEST error", err)
		}
	}
}
