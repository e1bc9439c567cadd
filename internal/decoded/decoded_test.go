package decoded

import (
	"errors"
	"testing"
)

// The same bytes are decoded once, other bytes anew, and what is bad is bad each time.
func TestMemoKnowsBytesAndNothingElse(t *testing.T) {
	var m Memo[string]
	calls := 0
	decode := func(b []byte) (*string, error) {
		calls++
		if len(b) == 0 {
			return nil, errors.New("bad")
		}
		s := string(b)
		return &s, nil
	}
	for _, step := range []struct {
		in    string
		calls int
	}{{"a", 1}, {"a", 1}, {"b", 2}, {"", 3}, {"", 4}, {"a", 4}} {
		v, err := m.Decode([]byte(step.in), decode)
		if calls != step.calls || (err != nil) != (step.in == "") || err == nil && *v != step.in {
			t.Fatalf("%q: %d calls, %v", step.in, calls, err)
		}
	}
	big := make([]byte, Max/2)
	for i := range 8 {
		big[0] = byte(i)
		if _, err := m.Decode(big, decode); err != nil {
			t.Fatal(err)
		}
		if m.size > Max || len(m.of) > 4 {
			t.Fatalf("%d bytes in %d entries are remembered", m.size, len(m.of))
		}
	}
}
