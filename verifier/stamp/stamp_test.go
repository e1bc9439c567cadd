package stamp

import (
	"strings"
	"testing"
	"time"
)

func TestStampIsGoodOnceForItsRequest(t *testing.T) {
	now := time.Unix(1700000000, 0)
	p := New(func() time.Time { return now })
	make := func(method, uri string, b Body) string {
		t.Helper()
		s, err := p.Make(method, uri, b)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	body := []byte(`{"Image":"x"}`)
	for _, c := range []struct {
		name, reason string
		use          func() error
	}{
		{"as it was made", "", func() error { return p.Use("POST", "/a", make("POST", "/a", Bytes(body)), body) }},
		{"without a body", "", func() error { return p.Use("GET", "/a", make("GET", "/a", NoBody()), nil) }},
		{"a stream", "", func() error { return p.Use("POST", "/a", make("POST", "/a", Stream()), nil) }},
		{"none", ReasonMissing, func() error { return p.Use("POST", "/a", "", body) }},
		{"nonsense", ReasonBroken, func() error { return p.Use("POST", "/a", "1.2.3", body) }},
		{"huge", ReasonBroken, func() error { return p.Use("POST", "/a", strings.Repeat(".", 600), body) }},
		{"other method", ReasonBroken, func() error { return p.Use("PUT", "/a", make("POST", "/a", NoBody()), nil) }},
		{"other uri", ReasonBroken, func() error { return p.Use("POST", "/b", make("POST", "/a", NoBody()), nil) }},
		{"other kind", ReasonBroken, func() error {
			return p.Use("POST", "/a", strings.Replace(make("POST", "/a", NoBody()), "none", "stream", 1), nil)
		}},
		{"of another process", ReasonBroken, func() error {
			return New(time.Now).Use("POST", "/a", make("POST", "/a", NoBody()), nil)
		}},
		{"other body", ReasonBody, func() error { return p.Use("POST", "/a", make("POST", "/a", Bytes(body)), []byte("{}")) }},
		{"body that the engine dropped", ReasonBody, func() error { return p.Use("POST", "/a", make("POST", "/a", Bytes(body)), nil) }},
		{"body where none was", ReasonBody, func() error { return p.Use("POST", "/a", make("POST", "/a", NoBody()), body) }},
		{"twice", ReasonUsed, func() error {
			s := make("POST", "/a", NoBody())
			if err := p.Use("POST", "/a", s, nil); err != nil {
				t.Error(err)
			}
			return p.Use("POST", "/a", s, nil)
		}},
		{"after a wrong try", ReasonUsed, func() error {
			s := make("POST", "/a", Bytes(body))
			p.Use("POST", "/a", s, nil)
			return p.Use("POST", "/a", s, body)
		}},
		{"old", ReasonUsed, func() error {
			s := make("POST", "/a", NoBody())
			now = now.Add(Lifetime + 1)
			return p.Use("POST", "/a", s, nil)
		}},
	} {
		err := c.use()
		if got := Reason(err); got != c.reason || (err == nil) != (c.reason == "") {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
	}
}

// The answer to a request may come long after it.
func TestMadeKnowsItsOwn(t *testing.T) {
	now := time.Unix(1700000000, 0)
	p := New(func() time.Time { return now })
	s, err := p.Make("GET", "/events", NoBody())
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	if err := p.Made("GET", "/events", s); err != nil {
		t.Error(err)
	}
	if Reason(p.Made("GET", "/other", s)) != ReasonBroken {
		t.Error("a stamp fits another request")
	}
}

// A caller that never sends what it stamps costs bounded memory.
func TestOpenStampsAreBounded(t *testing.T) {
	now := time.Unix(1700000000, 0)
	p := New(func() time.Time { return now })
	for range maxOpen {
		if _, err := p.Make("GET", "/", NoBody()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Make("GET", "/", NoBody()); err == nil {
		t.Error("one more was stamped")
	}
	now = now.Add(Lifetime + 1)
	if _, err := p.Make("GET", "/", NoBody()); err != nil {
		t.Error(err)
	}
}

func FuzzUse(f *testing.F) {
	p := New(time.Now)
	s, _ := p.Make("GET", "/", NoBody())
	f.Add("GET", "/", s+"x", []byte{})
	f.Add("GET", "/", "a.json.00.b", []byte("{}"))
	f.Add("", "", "", []byte{})
	f.Fuzz(func(t *testing.T, method, uri, text string, seen []byte) {
		if p.Use(method, uri, text, seen) == nil {
			t.Errorf("%q is a stamp", text)
		}
	})
}
