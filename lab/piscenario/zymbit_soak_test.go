//go:build soak

package piscenario

import (
	"testing"
	"time"

	"portcullis/lab/pi"
)

// TestZymbitCard: without a TPM the module keeps the key alone, and the console says
// what that is not worth.
func TestZymbitCard(t *testing.T) {
	c := fresh(t, pi.Variant{ZymbitDebs: vendorDebs(t)})
	mustSend(t, c.Zymbit(bound("1")))
	c.TPM = ""
	own := newModule(t)
	began := time.Now()
	m := boot(t, c, own.plugged)
	expect(t, m, `portcullis: stage=enrol-seal [^\n]*backend=zymbit`)
	expect(t, m, `portcullis: stage=cap [^\n]*chip=zymbit closed=no`)
	expect(t, m, `portcullis: stage=enrol-commit`)
	expect(t, m, `portcullis: stage=switch-root`)
	m.Kill()
	m = boot(t, c, own.plugged)
	expect(t, m, `portcullis: stage=unlock [^\n]*by=zymbit`)
	expect(t, m, `portcullis: stage=switch-root`)
	m.Kill()
	m = boot(t, c, newModule(t).plugged)
	expect(t, m, `portcullis: failed stage=unlock [^\n]*reason=zymbit-refused `)
	t.Logf("all: %.1f s", time.Since(began).Seconds())
}
