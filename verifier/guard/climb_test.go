package guard

import (
	"net/http"
	"strings"
	"testing"
)

// TestAttack_ImageThatClimbs: the client of the engine cleans a path before it sends it. An image of a create
// whose name climbs out of /images would be another question of the engine's, under the guard's stamp: one
// for a registry of the caller's choice (distribution), for a plugin, for a program in a container.
func TestAttack_ImageThatClimbs(t *testing.T) {
	e := &listed{ids: map[string]string{"other": strings.Repeat("a", 64)}}
	g := before(t, e, func(*Options) {})
	for _, image := range []string{"x/../../distribution/192.0.2.1/evil", "x/../../plugins/evil", "x/../../exec/0123", "x/../../containers/other", "x/../..", "x/..", "x/./y", "x//y", "x/.y",
		"x/", "x/../../../_ping", "a" + strings.Repeat("/a", 128)} {
		w := ask(g, "POST", "/v1.41/containers/create", `{"Image":"`+image+`"}`)
		if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), ReasonField) {
			t.Errorf("%q: %d %s", image, w.Code, w.Body)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.told) != 0 {
		t.Errorf("the engine was asked %q", e.told)
	}
}
