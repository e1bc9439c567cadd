package main

import (
	"testing"

	"portcullis/hardware"
	"portcullis/images/card"
)

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
