package lock

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"portcullis/verifier/stamp"
)

func post(t *testing.T, p *stamp.Press, path, body string) (response, []string) {
	t.Helper()
	var told []string
	w := httptest.NewRecorder()
	Handler(p, func(method, uri, reason, _ string) { told = append(told, method+" "+uri+" "+reason) }).
		ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader(body)))
	var r response
	if w.Code == 200 {
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
	}
	return r, told
}

func TestOnlyStampedRequestsPass(t *testing.T) {
	p := stamp.New(time.Now)
	fresh := func(uri string, b stamp.Body) string {
		s, err := p.Make("POST", uri, b)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := fmt.Sprintf(`{"User":"","RequestMethod":"POST","RequestUri":"/a","RequestBody":"e30=","RequestHeaders":{"X-Portcullis-Stamp":%q}}`, fresh("/a", stamp.Bytes([]byte("{}"))))
	for _, c := range []struct{ name, body, reason string }{
		{"stamped", good, ""},
		{"again", good, stamp.ReasonUsed},
		{"no header", `{"RequestMethod":"POST","RequestUri":"/a"}`, stamp.ReasonMissing},
		{"two headers", `{"RequestMethod":"POST","RequestUri":"/a","RequestHeaders":{"X-Portcullis-Stamp":"a","x-portcullis-stamp":"b"}}`, stamp.ReasonMissing},
		{"not ours", `{"RequestMethod":"POST","RequestUri":"/a","RequestHeaders":{"X-Portcullis-Stamp":"a.none.b.c"}}`, stamp.ReasonBroken},
		{"body lost", fmt.Sprintf(`{"RequestMethod":"POST","RequestUri":"/b","RequestHeaders":{"X-Portcullis-Stamp":%q}}`, fresh("/b", stamp.Bytes([]byte("{}")))), stamp.ReasonBody},
		{"empty", ``, ReasonMalformed},
		{"not JSON", `x`, ReasonMalformed},
		{"two values", `{"RequestMethod":"POST","RequestUri":"/a"}{}`, ReasonMalformed},
		{"no method", `{"RequestUri":"/a"}`, ReasonMalformed},
		{"huge", `{"RequestMethod":"` + strings.Repeat("x", MaxRequest) + `"}`, ReasonMalformed},
	} {
		r, told := post(t, p, "/AuthZPlugin.AuthZReq", c.body)
		if r.Allow != (c.reason == "") || !strings.Contains(r.Msg, c.reason) {
			t.Errorf("%s: %+v, want %q", c.name, r, c.reason)
		}
		if want := map[bool]int{true: 0, false: 1}[c.reason == ""]; len(told) != want || want == 1 && !strings.HasSuffix(told[0], c.reason) {
			t.Errorf("%s: told %q", c.name, told)
		}
	}
}

// Other paths of the plugin's socket answer nothing.
func TestOtherPaths(t *testing.T) {
	for _, path := range []string{"/", "/AuthZPlugin.AuthZReqX", "/VolumeDriver.Create", "/Plugin.Deactivate"} {
		if r, _ := post(t, stamp.New(time.Now), path, "{}"); r.Allow {
			t.Errorf("%s allows", path)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"RequestMethod":"POST","RequestUri":"/a","RequestBody":"e30=","RequestHeaders":{"X-Portcullis-Stamp":"a.none.b.c"}}`)
	f.Add(`{}`)
	f.Add(`[`)
	f.Fuzz(func(t *testing.T, body string) {
		q, err := decode(strings.NewReader(body))
		if err != nil {
			return
		}
		if stamp.New(time.Now).Use(q.RequestMethod, q.RequestURI, q.stamp(), q.RequestBody) == nil {
			t.Errorf("%q passes", body)
		}
	})
}
