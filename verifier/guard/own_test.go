package guard

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/stamp"
)

// listed is an engine that knows containers by the names that they were given, and writes
// down what else it is asked for.
type listed struct {
	ids  map[string]string
	mu   sync.Mutex
	told []string
}

func (l *listed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if r.Method == http.MethodGet && len(parts) == 4 && parts[1] == "containers" && parts[3] == "json" {
		for name, id := range l.ids {
			if parts[2] == name || parts[2] == id {
				w.Header().Set("Content-Type", "application/json")
				json.NewEncoder(w).Encode(map[string]any{"Id": id})
				return
			}
		}
	}
	if !strings.HasSuffix(r.URL.Path, "_ping") {
		l.mu.Lock()
		l.told = append(l.told, r.Method+" "+r.URL.Path)
		l.mu.Unlock()
	}
}

// client asks an engine that is played.
func client(t *testing.T, e http.Handler) *engine.Client {
	t.Helper()
	c, err := engine.New(listening(t, e), stamp.New(time.Now))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// listening answers at a socket of its own.
func listening(t *testing.T, h http.Handler) (socket string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// before is a guard before an engine that only lists; it is asked by ask.
func before(t *testing.T, e http.Handler, change func(*Options)) *Guard {
	t.Helper()
	dir := t.TempDir()
	c := client(t, e)
	a, err := newApprovals(filepath.Join(dir, "approvals"))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Engine: c, Approvals: a, StateDir: filepath.Join(dir, "state"), Clock: clock.Real{}, Events: event.NewJSON(&eventtest.Buffer{}, "guard", time.Now)}
	change(&o)
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	g.info = engine.Info{Version: "20.10.24", API: "1.41"}
	return g
}

func ask(g *Guard, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RequestURI = path
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w
}

// TestInvariant07_CallersOnlyLookAtServices: who may run tasks on the Pi does not end, stop
// or start attestd, nor takes its name; what he made himself he may end.
func TestInvariant07_CallersOnlyLookAtServices(t *testing.T) {
	service, task := strings.Repeat("a", 64), strings.Repeat("b", 64)
	e := &listed{ids: map[string]string{"portcullis-attestd": service, "task": task}}
	g := before(t, e, func(o *Options) {
		o.Reserved, o.ReservedNames = []string{"service/attestd"}, []string{"portcullis-attestd"}
	})
	if err := g.state.change(func(f *stateFile) {
		f.Containers[service] = madeByGuard{Own: true, Purpose: "service/attestd", Permitted: true}
		f.Containers[task] = madeByGuard{Purpose: "task", Permitted: true}
	}); err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{"POST /v1.41/containers/NAME/stop", "POST /v1.41/containers/NAME/stop?t=0", "POST /v1.41/containers/NAME/kill", "POST /v1.41/containers/NAME/kill?signal=STOP",
		"POST /v1.41/containers/NAME/attach?stream=1&stdout=1", "POST /v1.41/containers/NAME/start", "DELETE /v1.41/containers/NAME?force=1"} {
		method, path, _ := strings.Cut(request, " ")
		for _, name := range []string{"portcullis-attestd", service} {
			w := ask(g, method, strings.ReplaceAll(path, "NAME", name), "")
			if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), approval.ReasonPurpose) {
				t.Errorf("%s of %.20s: %d %s", request, name, w.Code, w.Body)
			}
		}
	}
	if len(e.told) != 0 {
		t.Errorf("the engine was asked for %v", e.told)
	}
	if w := ask(g, "GET", "/v1.41/containers/portcullis-attestd/json", ""); w.Code != http.StatusOK {
		t.Errorf("looking at it: %d %s", w.Code, w.Body)
	}
	ask(g, "GET", "/v1.41/containers/portcullis-attestd/logs?stdout=1", "")
	ask(g, "POST", "/v1.41/containers/task/kill", "")
	if want := []string{"GET /v1.41/containers/" + service + "/logs", "POST /v1.41/containers/" + task + "/kill"}; strings.Join(e.told, ",") != strings.Join(want, ",") {
		t.Errorf("the engine was asked for %v, want %v", e.told, want)
	}
	for path, body := range map[string]string{
		"/v1.41/containers/create?name=portcullis-attestd": `{"Image":"x:1"}`,
		"/v1.41/containers/create":                         `{"Image":"x:1","Labels":{"portcullis.purpose":"service/attestd"}}`,
	} {
		if w := ask(g, "POST", path, body); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), approval.ReasonPurpose) {
			t.Errorf("%s %s: %d %s", path, body, w.Code, w.Body)
		}
	}
}

// TestInvariant07_AnotherNamespaceIsNotTheEngines: only one namespace of containerd is the
// engine's; in another one a container may have the ID of one that the guard made.
func TestInvariant07_AnotherNamespaceIsNotTheEngines(t *testing.T) {
	for name, c := range map[string]struct {
		met  engine.Info
		ours []string
		not  []string
	}{
		"before it is met":             {engine.Info{}, []string{"moby", "moby-100000.100000", "moby.1.1"}, []string{"", "evil", "mobyx", "moby-1", "moby-1.1.1"}},
		"without users":                {engine.Info{Version: "20.10.24"}, []string{"moby"}, []string{"moby-100000.100000", "moby.1.1", ""}},
		"with users, before Docker 26": {engine.Info{Version: "20.10.24+dfsg1", Userns: true, FirstUID: 100000, FirstGID: 200000}, []string{"moby"}, []string{"moby-100000.200000", "moby-1.1", ""}},
		"with users": {engine.Info{Version: "26.1.5+dfsg1", Userns: true, FirstUID: 100000, FirstGID: 200000}, []string{"moby-100000.200000"},
			[]string{"moby", "moby-100000.100000", "moby-1.1", ""}},
	} {
		g := &Guard{info: c.met}
		for _, s := range c.ours {
			if !g.engineSpace(s) {
				t.Errorf("%s: %q is not the engine's", name, s)
			}
		}
		for _, s := range c.not {
			if g.engineSpace(s) {
				t.Errorf("%s: %q is the engine's", name, s)
			}
		}
	}
}
