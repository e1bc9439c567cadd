package guard

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/verifier/engine"
)

// hand is a clock that is set by hand.
type hand struct{ seconds atomic.Int64 }

func (h *hand) Now() time.Time                       { return time.Unix(1700000000+h.seconds.Load(), 0) }
func (h *hand) After(time.Duration) <-chan time.Time { return nil }

// TestAttack_LogFilledWithPermissions: each permission is an entry of the log for ever, and who may start one container
// could start it again and again. A caller has a bound, and only that caller; root and the verifier's services have none.
func TestAttack_LogFilledWithPermissions(t *testing.T) {
	kept, gone, runs := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
	e := &listed{ids: map[string]string{"kept": kept, "gone": gone, "runs": runs}}
	now := &hand{}
	g := before(t, e, func(o *Options) { o.Clock = now })
	if err := g.state.change(func(f *stateFile) {
		f.Containers[kept] = madeByGuard{}
		f.Containers[gone] = madeByGuard{Spec: engine.Spec{Remove: true}}
		f.Containers[runs] = madeByGuard{Spec: engine.Spec{Remove: true}, Permitted: true}
	}); err != nil {
		t.Fatal(err)
	}
	call := func(caller, path, contentType, body string) string {
		t.Helper()
		r := httptest.NewRequest("POST", path, strings.NewReader(body))
		r.RequestURI = path
		if body != "" {
			r.Header.Set("Content-Type", contentType)
		}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, &watched{caller: caller})))
		if w.Code == http.StatusNoContent {
			t.Fatal("it was started: the node is not fit")
		}
		reason, _, _ := strings.Cut(strings.TrimPrefix(w.Body.String(), `{"message":"portcullis: `), ":")
		return reason
	}
	start := func(caller, name, want string) {
		t.Helper()
		if got := call(caller, "/v1.41/containers/"+name+"/start", "", ""); got != want {
			t.Errorf("%s starts %s: %s, want %s", caller, name, got, want)
		}
	}
	for range paceBurst {
		start("uid 4001", "kept", ReasonUnfit)
	}
	start("uid 4001", "kept", ReasonPace)
	if got := call("uid 4001", "/v1.41/images/load", "application/x-tar", "x"); got != ReasonPace {
		t.Errorf("a load: %s", got)
	}
	// Its end is waited for by who has it go when it ends.
	start("uid 4001", "gone", ReasonPace)
	start("uid 4001", "runs", ReasonPace)
	for id, want := range map[string]bool{kept: true, gone: false, runs: true} {
		if _, there := g.state.container(id); there != want {
			t.Errorf("%s is there: %t", id, there)
		}
	}
	start("uid 4002", "kept", ReasonUnfit)
	for _, caller := range []string{"uid 0", fmt.Sprintf("uid %d", os.Getuid())} {
		for range 2 * paceBurst {
			start(caller, "kept", ReasonUnfit)
		}
	}
	now.seconds.Add(2)
	for range 2 * pacePerSec {
		start("uid 4001", "kept", ReasonUnfit)
	}
	start("uid 4001", "kept", ReasonPace)
}
