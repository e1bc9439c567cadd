package piscenario

import (
	"strings"
	"testing"
)

// withHostname are the lab's settings with another name for the Pi.
func withHostname(t *testing.T, name string) string {
	t.Helper()
	now := seed(t)
	changed := strings.Replace(now, "hostname: portcullis-lab\n", "hostname: "+name+"\n", 1)
	if changed == now {
		t.Fatalf("no hostname in %q", now)
	}
	return changed
}

// TestAttackSettingsChangedOnTheCard: somebody has had the card in a reader and
// written settings of their own. The chip opens the disk, nothing else has changed;
// the settings in force stay those that the operator gave before.
func TestAttackSettingsChangedOnTheCard(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	c := cardOf(t, p.Card)
	if err := c.Seed(withHostname(t, "intruder")); err != nil {
		t.Fatal(err)
	}
	m := boot(t, c)
	expect(t, m, `portcullis: stage=unlock [^\n]*by=tpm2`)
	expect(t, m, `settings on the card were changed[^\n]*left\): `)
	mustSend(t, m.Send("yes\n"))
	expect(t, m, `portcullis: note=settings-changed [^\n]*not used`)
	expect(t, m, `portcullis: stage=settings [^\n]*configured=yes`)
	running(t, m)
	if name := output(t, m, "cat", "/proc/sys/kernel/hostname"); strings.Contains(name, "intruder") {
		t.Errorf("the Pi calls itself %s", name)
	}
}

// TestOperatorChangesSettings: with the recovery key they are taken, and the next
// boot asks nobody.
func TestOperatorChangesSettings(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	c := cardOf(t, p.Card)
	if err := c.Seed(withHostname(t, "moved")); err != nil {
		t.Fatal(err)
	}
	for _, asked := range []bool{true, false} {
		m := boot(t, c)
		if asked {
			expect(t, m, `settings on the card were changed[^\n]*left\): `)
			mustSend(t, m.Send(p.Recovery+"\n"))
		}
		expect(t, m, `portcullis: stage=settings [^\n]*configured=yes`)
		if !asked && strings.Contains(m.Console().Text(), "were changed") {
			t.Error("asked again")
		}
		running(t, m)
		if name := output(t, m, "cat", "/proc/sys/kernel/hostname"); !strings.Contains(name, "moved") {
			t.Errorf("the Pi calls itself %s", name)
		}
		powerOff(t, m)
	}
}
