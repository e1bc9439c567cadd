package strictjson

import "testing"

type value struct {
	A string `json:"a"`
}

func TestDecodeTakesOneValueAndKnownFields(t *testing.T) {
	var v value
	if err := Decode([]byte(`{"a":"<&>"}`), &v); err != nil || v.A != "<&>" {
		t.Fatalf("%+v, %v", v, err)
	}
	for _, bad := range []string{``, `{"a":"x"} {}`, `{"a":"x","b":1}`, `{"a":"x"}]`, `[`} {
		if Decode([]byte(bad), &v) == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestCompactHasNoEscapesAndNoEnd(t *testing.T) {
	if b, err := Compact(value{"<&>"}); err != nil || string(b) != `{"a":"<&>"}` {
		t.Errorf("%s, %v", b, err)
	}
}

func TestFirstDifference(t *testing.T) {
	for _, c := range []struct {
		a, b string
		at   int
	}{{"", "", 0}, {"ab", "ab", 2}, {"ab", "abc", 2}, {"axc", "abc", 1}} {
		if got := FirstDifference([]byte(c.a), []byte(c.b)); got != c.at {
			t.Errorf("%q, %q: %d", c.a, c.b, got)
		}
	}
}
