package fingerprint

import (
	"crypto/rand"
	"testing"
)

// Who changes a record that was loaded changes nobody else's.
func TestLoadedRecordIsOnesOwn(t *testing.T) {
	refs := memory{}
	o := Observation{Machine: "52:54:00:00:00:01", Session: "a", Image: "i", Parts: []Part{{Class: "cpu", Slot: "0", Value: "x"}}}
	if err := Enrol(refs, o, rand.Reader); err != nil {
		t.Fatal(err)
	}
	r, err := Load(refs, o.Machine)
	if err != nil {
		t.Fatal(err)
	}
	r.Parts[0].Value, r.Boots[0] = "y", "b"
	again, err := Load(refs, o.Machine)
	if err != nil || again.Parts[0].Value != "x" || again.Boots[0] != "a" {
		t.Fatalf("%+v, %v", again, err)
	}
}
