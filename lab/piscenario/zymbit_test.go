package piscenario

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"portcullis/images/card"
	"portcullis/lab/pi"
)

// recoveryShown is the recovery key as a first boot shows it.
const recoveryShown = `portcullis: recovery key[^\n]*\n[^a-z]*((?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8})`

// TestCombinedCard: an image with the vendor's tools enrols the TPM and what plays a
// Zymbit module, opens with both, and with neither of them replaced. The recovery key
// opens it in the machine with another module.
func TestCombinedCard(t *testing.T) {
	t.Parallel()
	c := fresh(t, pi.Variant{ZymbitDebs: vendorDebs(t)})
	mustSend(t, c.Zymbit(bound("1")))
	own, other := newModule(t), newModule(t)
	began := time.Now()

	m := boot(t, c, own.plugged)
	expect(t, m, `portcullis: stage=chip [^\n]*backend=combined`)
	expect(t, m, `portcullis: stage=enrol-seal [^\n]*backend=combined`)
	recovery := expect(t, m, recoveryShown)[1]
	expect(t, m, `portcullis: stage=enrol-commit`)
	expect(t, m, `portcullis: stage=switch-root`)
	m.Kill()
	if own.answered("lock") != 1 || own.answered("unlock") != 2 || own.answered("random") < 3 {
		t.Errorf("the module's answers: %v", own.calls)
	}
	t.Logf("first boot: %.1f s", time.Since(began).Seconds())

	m = boot(t, c, own.plugged)
	expect(t, m, `portcullis: stage=unlock [^\n]*by=combined`)
	expect(t, m, `portcullis: stage=cap [^\n]*registers=11,15`)
	expect(t, m, `portcullis: stage=switch-root`)
	var h card.Handover
	if err := json.Unmarshal([]byte(output(t, m, "cat", card.HandoverPath)), &h); err != nil {
		t.Fatal(err)
	}
	if h.Backend != card.RootCombined || h.UnlockedBy != card.UnlockedByCombined || h.Root != card.RootAuto || h.FirstBoot {
		t.Errorf("handover %+v", h)
	}
	status := output(t, m, "portcullis", "root", "status")
	for _, want := range []string{"opened   by combined", "to combined", "never run against a module"} {
		if !strings.Contains(status, want) {
			t.Errorf("root status lacks %q:\n%s", want, status)
		}
	}
	m.Kill()
	t.Logf("second boot: %.1f s", time.Since(began).Seconds())

	// With its TPM beside another module, and with a copy of the module's directory that
	// somebody has put back to an old one: the recovery key opens, and the volume's copy
	// of the directory goes to the card.
	mustSend(t, c.Zymbit(bound("1")))
	m = boot(t, c, other.plugged)
	expect(t, m, `portcullis: failed stage=unlock [^\n]*reason=combined-zymbit-half [^\n]*not-mine`)
	expect(t, m, recoveryPrompt)
	mustSend(t, m.Send(recovery+"\n"))
	expect(t, m, `portcullis: stage=unlock [^\n]*by=recovery`)
	expect(t, m, `portcullis: stage=switch-root`)
	m.Kill()
	t.Logf("another module: %.1f s", time.Since(began).Seconds())

	// With its module beside another TPM.
	m = boot(t, otherChip(t, c), own.plugged)
	expect(t, m, `portcullis: failed stage=unlock [^\n]*reason=combined-tpm-half `)
	m.Kill()

	// Home again. The module would refuse a directory that is older than its last call.
	m = boot(t, c, own.plugged)
	expect(t, m, `portcullis: stage=unlock [^\n]*by=combined`)
	m.Kill()
	t.Logf("all: %.1f s", time.Since(began).Seconds())
}
