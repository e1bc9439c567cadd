package rearm

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"portcullis/hardware"
)

// TestCombinedIsNotMadeSingleUnasked: a volume that two chips keep together is bound to
// one of them only where somebody says so; nothing is written before that.
func TestCombinedIsNotMadeSingleUnasked(t *testing.T) {
	v := enrolled(t)
	d := &disk{b: bytes.Clone(v.disk)}
	o := options(d, v, chip(t))
	o.Backend = hardware.BackendCombined // the fake plays both
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got, err := Bound(d, deviceSize); err != nil || !slices.Equal(got, []hardware.Backend{hardware.BackendCombined}) {
		t.Fatalf("bound to %v, %v", got, err)
	}
	bound := bytes.Clone(d.b)
	one := chip(t)
	for _, single := range []hardware.Backend{hardware.BackendTPM2, hardware.BackendZymbit} {
		o := options(d, v, one)
		o.Backend = single
		var e *Error
		if _, err := Run(t.Context(), o); !errors.As(err, &e) || e.Reason != ReasonDowngrade || !bytes.Equal(d.b, bound) {
			t.Errorf("%s: %v", single, err)
		}
	}
	o = options(d, v, one)
	o.Backend, o.Downgrade = hardware.BackendTPM2, true
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got, err := Bound(d, deviceSize); err != nil || !slices.Equal(got, []hardware.Backend{hardware.BackendTPM2}) || opens(t, d, one, v.key) != 1 {
		t.Errorf("bound to %v, %v", got, err)
	}
}
