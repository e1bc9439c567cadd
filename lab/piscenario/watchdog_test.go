package piscenario

import (
	"strings"
	"testing"
)

// TestWatchdogIsHandedOver: pi-init arms the watchdog, and systemd goes on feeding it
// with a limit of its own; at no moment in between does it stop.
func TestWatchdogIsHandedOver(t *testing.T) {
	p := provisioned(t)
	m := boot(t, cardOf(t, p.Card))
	expect(t, m, `portcullis: stage=watchdog [^\n]*seconds=\d+`)
	expect(t, m, `portcullis: stage=switch-root`)
	expect(t, m, `watchdog: watchdog0: watchdog did not stop!`)
	running(t, m)
	got := strings.Fields(output(t, m, "/bin/sh", "-c", "cd /sys/class/watchdog/watchdog0 && cat state timeout"))
	if len(got) != 2 || got[0] != "active" || got[1] != "15" {
		t.Errorf("watchdog %q, systemd's is active with 15 s", got)
	}
	powerOff(t, m)
}
