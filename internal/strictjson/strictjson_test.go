package strictjson

import (
	"encoding/json"
	"testing"
)

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

// Two keys that encoding/json takes for one field are folded to one, and no others.
func TestFoldIsThatOfTheDecoder(t *testing.T) {
	for _, key := range []string{"Disk", "disk", "DISK", "di\u017fk", "dis\u212a", "D\u0130SK", "d\u0131sk", "disc", "diskk", "dis", "", "ß"} {
		var v struct{ Disk int }
		text, err := json.Marshal(map[string]int{key: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		if same := Fold(key) == Fold("Disk"); same != (v.Disk == 1) {
			t.Errorf("%q: folded alike %t, the decoder takes it %d times", key, same, v.Disk)
		}
	}
}
