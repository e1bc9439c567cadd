package guard

import (
	"fmt"
	"strings"
	"testing"
)

// Callers may speak as new as the engine does, and are told so; newer than what this
// code knows is not spoken.
func TestNewestAPI(t *testing.T) {
	for api, want := range map[string]int{"1.41": 41, "1.45": 45, "1.56": 56, "1.57": MaxAPI, "1.99": MaxAPI, "1.40": 0, "1.24": 0, "2.1": 0, "1.": 0, "": 0, "1.100": 0} {
		if n, err := minor(api); n != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d %v", api, n, err)
		}
	}
	r := newRig(t)
	r.mu.Lock()
	newest, err := minor(r.info.API)
	r.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if code, body := send(t, r.socket, "GET", fmt.Sprintf("/v1.%d/containers/json", newest), "", nil); code != 200 {
		t.Errorf("1.%d: %d %s", newest, code, body)
	}
	if code, body := send(t, r.socket, "GET", fmt.Sprintf("/v1.%d/containers/json", newest+1), "", nil); code != 403 || !strings.Contains(body, ReasonVersion) {
		t.Errorf("1.%d: %d %s", newest+1, code, body)
	}
	c := r.image(t, plain)
	body := []byte(`{"Image":"` + c.Name + `","Cmd":["say","new"]}`)
	if code, answer := send(t, r.socket, "POST", fmt.Sprintf("/v1.%d/containers/create", newest), "application/json", body); code != 201 {
		t.Errorf("a container by 1.%d: %d %s", newest, code, answer)
	}
}
