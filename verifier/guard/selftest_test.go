package guard

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/verifier/approval"
	"portcullis/verifier/stamp"
)

// lockAt answers at a socket of its own.
func lockAt(t *testing.T, h http.HandlerFunc) (socket string) {
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

// TestInvariant07_FailedSelfTestIsUnfit: whichever of the two locks lets one of the ways
// through, or refuses it for another reason than it must, and an engine that has the image in
// the end make the node unfit; where all is locked it is not unfit for that.
func TestInvariant07_FailedSelfTestIsUnfit(t *testing.T) {
	ways := map[string]string{"load": "/images/load", "run": "/containers/create", "cp": "/archive", "commit": "/commit",
		"build": "/build", "import": "/images/create", "plugin": "/plugins/create", "exec": "/exec"}
	reasons := map[string]string{"/images/load": approval.ReasonUnapproved, "/containers/create": ReasonImage}
	// meet has a guard meet an engine; open and odd are the places that let through, or refuse
	// for another reason. It returns what the node is unfit for by its self-test.
	meet := func(open, odd string, held bool) string {
		at := func(place string) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				for _, path := range ways {
					if !strings.HasSuffix(r.URL.Path, path) {
						continue
					}
					reason := stamp.ReasonMissing
					if place == "the guard" {
						if reason = reasons[path]; reason == "" {
							reason = ReasonEndpoint
						}
					}
					switch place + path {
					case open:
						return
					case odd:
						reason = "another"
					}
					http.Error(w, reason, http.StatusForbidden)
				}
			}
		}
		e := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Api-Version", "1.41")
			w.Header().Set("Content-Type", "application/json")
			switch {
			case strings.HasSuffix(r.URL.Path, "/info"):
				json.NewEncoder(w).Encode(map[string]any{"ServerVersion": "20.10.24", "Driver": "overlay2"})
			case strings.HasSuffix(r.URL.Path, "/version"):
				json.NewEncoder(w).Encode(map[string]any{"ApiVersion": "1.41"})
			case strings.Contains(r.URL.Path, "/images/sha256:") && held:
				json.NewEncoder(w).Encode(map[string]any{"Id": "sha256:" + strings.Repeat("0", 64)})
			case strings.HasSuffix(r.URL.Path, "_ping"):
			default:
				http.Error(w, `{"message":"no such thing"}`, http.StatusNotFound)
			}
		})
		g := before(t, e, func(o *Options) { o.Socket, o.Door = lockAt(t, at("the guard")), lockAt(t, at("the engine")) })
		g.meet(t.Context())
		g.work.Wait()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.tested.IsZero() {
			t.Error("nothing was tested")
		}
		return g.unfit["self-test"]
	}
	if why := meet("", "", false); why != "" {
		t.Errorf("all is locked: %s", why)
	}
	if why := meet("", "", true); !strings.Contains(why, "holds the image") {
		t.Errorf("the engine has the image in the end: %q", why)
	}
	for name, path := range ways {
		for place, said := range map[string]string{"the guard": name + " through the guard", "the engine": name + " at the engine"} {
			if why := meet(place+path, "", false); !strings.Contains(why, said) {
				t.Errorf("%s lets %s through: %q", place, name, why)
			}
			if why := meet("", place+path, false); !strings.Contains(why, said) {
				t.Errorf("%s refuses %s for another reason: %q", place, name, why)
			}
		}
	}
}
