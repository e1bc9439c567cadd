package piinit

import (
	"strings"
	"testing"
)

// A module whose reset line is not wired keeps its registers when the Pi restarts:
// the chip refuses, as it must, and the console says what to do.
func TestChipThatWasNotResetIsNamed(t *testing.T) {
	_, seed := operator(t)
	p := newPi(t, newSigner(t).build(t, 3), seed)
	p.must()
	p.must()
	if strings.Contains(p.people.text(), "not reset") {
		t.Errorf("said after a power cycle:\n%s", p.people.text())
	}
	p.warm = true
	err := p.refused(string(ReasonUnlock))
	if !strings.Contains(err.Error(), string(ReasonNotReset)) || !strings.Contains(p.people.text(), "the chip was not reset with the Pi") {
		t.Errorf("%v\n%s", err, p.people.text())
	}
	p.warm = false
	p.must()
}
