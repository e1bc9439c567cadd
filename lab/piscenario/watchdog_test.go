package piscenario

import (
	"strings"
	"testing"
)

// TestWatchdogIsHandedOver: pi-init arms the watchdog, and systemd goes on feeding it
// with a limit of its own; at no moment in between does it stop.
func TestWatchdogIsHandedOver(t *testing.T) {
	t.Parallel()
	m, _, console := goesOn(t)
	said(t, console, `portcullis: stage=watchdog [^\n]*seconds=\d+`, `portcullis: stage=switch-root`, `watchdog: watchdog0: watchdog did not stop!`)
	got := output(t, m, "/bin/sh", "-c", "cat /sys/class/watchdog/watchdog0/state; ls -l /proc/1/fd; journalctl -b --no-pager")
	for _, want := range []string{"active\n", "-> /dev/watchdog0\n", "Using hardware watchdog"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not said:\n%.600s", want, got)
		}
	}
	powerOff(t, m)
}
