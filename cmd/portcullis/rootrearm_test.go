package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/setup"
	"portcullis/images/card"
)

// edited is the handover of m after change.
func (m *movedCard) edited(t *testing.T, change func(*card.Handover)) {
	t.Helper()
	b, err := os.ReadFile(m.handover)
	must(t, err)
	h, err := card.ParseHandover(b)
	must(t, err)
	change(h)
	b, err = h.Encode()
	must(t, err)
	must(t, os.WriteFile(m.handover, b, 0o644))
}

// A Pi whose key a module keeps: status says what that is not worth, test asks the
// module though nobody set it up, and the image's demand is held against the volume.
func TestStatusAndTestOfAZymbitPi(t *testing.T) {
	m := newMovedCard(t)
	m.edited(t, func(h *card.Handover) {
		h.Backend, h.UnlockedBy, h.Recovered, h.ChipProblem, h.Root = card.RootZymbit, card.UnlockedByZymbit, false, "", card.RootCombined
	})
	s := setup.Gather(setup.Paths{Handover: m.handover, Device: m.crypt, Dir: t.TempDir()})
	if s.Demand != card.RootCombined || !strings.Contains(strings.Join(s.Warnings, "\n"), "the image demands combined") {
		t.Errorf("%+v", s)
	}
	s.Volume.Bindings[0].Backend = hardware.BackendZymbit
	var out strings.Builder
	printRootStatus(&out, s)
	for _, want := range []string{"opened   by zymbit", "nothing was measured", "image    enrols combined"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	code, text, _ := rootRun(t, "", "test", "--dir", t.TempDir(), "--handover", m.handover, "--json")
	var r struct{ Checks []setup.Check }
	must(t, json.Unmarshal([]byte(text), &r))
	if code != 1 || len(r.Checks) != 1 || r.Checks[0].Name != "zymbit" || !strings.Contains(r.Checks[0].Detail, string(hardware.ReasonAbsent)) {
		t.Errorf("exit %d, %s", code, text)
	}
	// Nothing is bound to less than the running image opens.
	code, _, errOut := rootRun(t, "", "rearm", "--backend", "tpm2", "--tpm", m.chip.Path, "--device", m.crypt, "--boot", m.boot, "--handover", m.handover)
	if code != 1 || !strings.Contains(errOut, "rearm-downgrade") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

// What rearm binds to where nobody names a backend: never less than the image demands
// or than the volume had.
func TestRearmKeepsTheBackend(t *testing.T) {
	list := func(b ...hardware.Backend) []hardware.Backend { return b }
	for name, c := range map[string]struct {
		demand, found string
		bound         []hardware.Backend
		want          hardware.Backend
	}{
		"nothing known":            {"", "", nil, hardware.BackendTPM2},
		"what this boot found":     {"", "zymbit", nil, hardware.BackendZymbit},
		"what the volume had":      {"", "combined", list(hardware.BackendTPM2), hardware.BackendTPM2},
		"both, the module is gone": {card.RootAuto, "tpm2", list(hardware.BackendCombined), hardware.BackendCombined},
		"a rearm that was cut":     {"", "tpm2", list(hardware.BackendTPM2, hardware.BackendCombined), hardware.BackendCombined},
		"the image demands":        {card.RootCombined, "tpm2", list(hardware.BackendTPM2), hardware.BackendCombined},
		"a fake":                   {"", "fake", list(hardware.BackendFake), hardware.BackendTPM2},
	} {
		if got := rearmBackend(&card.Handover{Root: c.demand, Backend: c.found}, c.bound); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
