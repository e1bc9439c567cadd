package manifest

import "testing"

// Whatever stands in a floor file is a number in its one spelling, or refused.
func FuzzParseFloor(f *testing.F) {
	f.Add(formatFloor(0))
	f.Add(formatFloor(1<<64 - 1))
	f.Add("portcullis-floor-v1 +1\n")
	f.Add("portcullis-floor-v1 18446744073709551616\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := parseFloor(s); err == nil && formatFloor(v) != s {
			t.Fatalf("%q is read as %d", s, v)
		}
	})
}
