package piscenario

import (
	"encoding/json"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/lab/pi"
)

// TestFirstBoot: a flashed card enrols itself with settings alone, shows the
// recovery key once, and the services run.
func TestFirstBoot(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	for _, x := range p.Timings {
		t.Logf("%-14s %6.1f s", x.What, x.Seconds)
	}
	if n := strings.Count(p.Console, p.Recovery); n != 1 {
		t.Errorf("the recovery key stands %d times on the console", n)
	}
	for _, stage := range []string{"enrol-grow", "enrol-format", "enrol-copy", "enrol-verify", "enrol-seal", "enrol-recovery", "enrol-commit", "switch-root"} {
		if !strings.Contains(p.Console, "portcullis: stage="+stage+" ") {
			t.Errorf("no stage %s", stage)
		}
	}
}

// TestSecondBoot: the chip opens the volume, nobody is asked. Without approvers the
// verifier runs, and no engine of Docker.
func TestSecondBoot(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	m, _, console := goesOn(t)
	said(t, console, `portcullis: stage=unlock [^\n]*by=tpm2`, `portcullis: stage=switch-root`)
	for _, s := range pi.Stages(console) {
		t.Logf("%6.2f s  %-12s %s", s.Seconds, s.Name, s.Rest)
	}
	var h card.Handover
	if err := json.Unmarshal([]byte(output(t, m, "cat", card.HandoverPath)), &h); err != nil {
		t.Fatal(err)
	}
	if h.Slot != card.SlotA || h.UnlockedBy != card.UnlockedByChip || h.FirstBoot || !h.Configured {
		t.Errorf("handover %+v", h)
	}
	if got, err := m.GatewayKey(t.Context()); err != nil || got != p.Gateway {
		t.Errorf("the gateway's key is %q (%v), it was %q", got, err, p.Gateway)
	}
	if strings.Contains(console+m.Console().Text(), p.Recovery) {
		t.Error("the recovery key is shown again")
	}
	if s := output(t, m, "systemctl", "show", "--property", "ActiveState", "--value", "verifierd.service", "portcullis-engine.service", "docker.service", "docker.socket", "containerd.service"); strings.Fields(s)[0] != "active" || strings.Count(s, "inactive") != 4 {
		t.Errorf("verifierd and the engine are %q", strings.Fields(s))
	}
	powerOff(t, m)
}
