package guard

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"portcullis/verifier/approval"
	"portcullis/verifier/stamp"
)

// toMeet is an engine that can be met; asked for an image it answers with this status.
func toMeet(image int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/info"):
			json.NewEncoder(w).Encode(map[string]any{"ServerVersion": "20.10.24", "Driver": "overlay2"})
		case strings.HasSuffix(r.URL.Path, "/version"):
			json.NewEncoder(w).Encode(map[string]any{"ApiVersion": "1.41"})
		case strings.Contains(r.URL.Path, "/images/sha256:"):
			w.WriteHeader(image)
			json.NewEncoder(w).Encode(map[string]any{"Id": "sha256:" + strings.Repeat("0", 64), "message": "as it is told"})
		case strings.HasSuffix(r.URL.Path, "_ping"):
		default:
			http.Error(w, `{"message":"no such thing"}`, http.StatusNotFound)
		}
	}
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
	meet := func(open, odd string, image int) string {
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
		g := before(t, toMeet(image), func(o *Options) { o.Socket, o.Door = listening(t, at("the guard")), listening(t, at("the engine")) })
		ctx, cancel := context.WithCancel(t.Context())
		g.meet(ctx)
		cancel()
		g.work.Wait()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.tested.IsZero() {
			t.Error("nothing was tested")
		}
		return g.unfit["self-test"]
	}
	if why := meet("", "", http.StatusNotFound); why != "" {
		t.Errorf("all is locked: %s", why)
	}
	if why := meet("", "", http.StatusOK); !strings.Contains(why, "holds the image") {
		t.Errorf("the engine has the image in the end: %q", why)
	}
	if why := meet("", "", http.StatusInternalServerError); why == "" {
		t.Error("an engine that does not say whether it has the image is fit")
	}
	for name, path := range ways {
		for place, said := range map[string]string{"the guard": name + " through the guard", "the engine": name + " at the engine"} {
			if why := meet(place+path, "", http.StatusNotFound); !strings.Contains(why, said) {
				t.Errorf("%s lets %s through: %q", place, name, why)
			}
			if why := meet("", place+path, http.StatusNotFound); !strings.Contains(why, said) {
				t.Errorf("%s refuses %s for another reason: %q", place, name, why)
			}
		}
	}
}

// A self-test that nobody answered is made again, and makes the node fit then; one that found a lock
// open is not: it would be tried until it fails to find that.
func TestSelfTestThatWasNotAnsweredIsMadeAgain(t *testing.T) {
	for name, c := range map[string]struct {
		first http.HandlerFunc // what the guard's socket answers first
		again bool
	}{
		"not answered":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true},
		"let through":   {func(http.ResponseWriter, *http.Request) {}, false},
		"other reasons": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "another", http.StatusForbidden) }, false},
	} {
		later := make(laterClock, 1)
		later <- time.Time{}
		g := before(t, toMeet(http.StatusNotFound), func(o *Options) { o.Clock, o.Socket, o.Door = later, listening(t, c.first), listening(t, c.first) })
		g.meet(t.Context())
		g.work.Wait()
		if g.fit() == nil {
			t.Errorf("%s: fit", name)
		}
		if again := len(g.fresh) == 1; again != c.again {
			t.Errorf("%s: again %t, want %t", name, again, c.again)
		}
	}
}

// laterClock comes to a time when it is sent one.
type laterClock chan time.Time

func (laterClock) Now() time.Time                         { return time.Time{} }
func (l laterClock) After(time.Duration) <-chan time.Time { return l }
