package guard

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/verifier/approval"
)

// hung is an engine that answers where it is asked whether it is there, and nowhere else.
type hung struct{ asked chan string }

func (h hung) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	if strings.HasSuffix(r.URL.Path, "_ping") {
		return
	}
	h.asked <- r.Method + " " + r.URL.Path
	<-r.Context().Done()
}

// TestInvariant07_RevocationWaitsForNoEngine: what was revoked is killed while the engine
// hangs, also where it hung when the one before was ended and in the middle of a
// reconciliation; and it is in the log.
func TestInvariant07_RevocationWaitsForNoEngine(t *testing.T) {
	containerd := filepath.Join(t.TempDir(), "containerd.sock")
	asked := make(chan string, 1000)
	g := before(t, hung{asked}, func(o *Options) { o.Containerd = containerd })
	log := g.opt.Approvals.(*approvals)
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	profile := plain
	stand := map[string]shim{}
	for _, c := range []string{"a", "b"} {
		i := approval.Image{Manifest: digest(c), Config: digest(c), Layers: []string{digest(c)}}
		log.approveImage(t, i, "task", profile)
		p, err := log.Decide(approval.Request{Action: approval.Start, Image: i, Purpose: "task", Profile: &profile, Caller: "test"})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.state.change(func(f *stateFile) {
			f.Containers[c] = madeByGuard{Image: i, Purpose: "task", Permission: p, Permitted: true}
		}); err != nil {
			t.Fatal(err)
		}
		stand[c], _ = standsBeside(t, "full", c, containerd, nil)
	}
	waitFor(t, "both containers", 10*time.Second, func() bool { return !stand["a"].empty() && !stand["b"].empty() })
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- g.Run(ctx) }()
	defer func() { cancel(); <-ran }()
	signal(g.wake)
	waitFor(t, "a reconciliation that waits", 10*time.Second, func() bool {
		select {
		case what := <-asked:
			return strings.HasSuffix(what, "/containers/json")
		default:
			return false
		}
	})
	for n, c := range []string{"a", "b"} {
		if stand[c].empty() {
			t.Errorf("%s ended before its image was revoked", c)
		}
		log.revoke(t, digest(c))
		waitFor(t, "the end of "+c, 10*time.Second, stand[c].empty)
		waitFor(t, "the entry of "+c, 10*time.Second, func() bool {
			log.mu.Lock()
			defer log.mu.Unlock()
			return len(log.no) == n+1 && log.no[n].Reason == approval.ReasonRevoked
		})
	}
}
