package guard

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/verifier/engine"
)

// stopped is a clock that never comes to any time.
type stopped struct{}

func (stopped) Now() time.Time                       { return time.Time{} }
func (stopped) After(time.Duration) <-chan time.Time { return nil }

// Who waits for the step gets it when it is let go, by no clock; who need not wait any longer does not.
func TestStepIsHandedOn(t *testing.T) {
	g := before(t, &listed{}, func(o *Options) { o.Clock = stopped{} })
	own := strings.Repeat("a", 64)
	if err := g.state.change(func(f *stateFile) { f.Containers[own] = madeByGuard{Own: true} }); err != nil {
		t.Fatal(err)
	}
	g.step.Lock()
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- g.EndOwn(ctx, own, 0) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	if _, ok := g.state.container(own); !ok {
		t.Error("it was removed without the step")
	}
	go func() { ended <- g.EndOwn(t.Context(), own, 0) }()
	g.step.Unlock()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, ok := g.state.container(own); ok {
		t.Error("it is still there")
	}
}

// heldOff is a context that tells when somebody waits for its end, and whether a limit was set until then.
type heldOff struct {
	context.Context
	waits   func()
	let     atomic.Bool // the lock was let go
	limited atomic.Bool // a limit was set before
}

func (c *heldOff) Done() <-chan struct{} {
	c.waits()
	return c.Context.Done()
}

// Deadline is asked for by every limit that is set within this one.
func (c *heldOff) Deadline() (time.Time, bool) {
	if !c.let.Load() {
		c.limited.Store(true)
	}
	return c.Context.Deadline()
}

// The time that the engine has to answer in begins when it is asked: who holds the step for long takes none of it.
func TestWaitForTheStepIsNotTheEngines(t *testing.T) {
	g := before(t, &listed{}, func(o *Options) { o.Clock = stopped{} })
	g.step.Lock()
	waits := make(chan struct{})
	ctx := &heldOff{Context: t.Context(), waits: sync.OnceFunc(func() { close(waits) })}
	ended := make(chan struct{})
	go func() { defer close(ended); g.reconcile(ctx) }()
	<-waits
	ctx.let.Store(true)
	g.step.Unlock()
	<-ended
	if ctx.limited.Load() {
		t.Error("a limit runs while the step is held")
	}
}

// TestAttack_CallerGoesAwayWhileAContainerIsMade: what the engine makes for a caller who has gone would be
// nobody's, and an alarm: who reached the engine?
func TestAttack_CallerGoesAwayWhileAContainerIsMade(t *testing.T) {
	id := strings.Repeat("a", 64)
	ctx, gone := context.WithCancel(t.Context())
	var mu sync.Mutex
	var told []string
	g := before(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		mu.Lock()
		told = append(told, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/v1.41"))
		mu.Unlock()
		switch {
		case strings.HasSuffix(r.URL.Path, "/create"):
			gone()
			io.WriteString(w, `{"Id":"`+id+`"}`)
		case r.Method == http.MethodGet:
			io.WriteString(w, `{"Id":"`+id+`"}`)
		}
	}), func(*Options) {})
	_, err := g.make(ctx, madeByGuard{Spec: engine.Spec{Image: engine.Image{ID: "sha256:x"}, Profile: compared}})
	mu.Lock()
	defer mu.Unlock()
	if Reason(err) != ReasonDiffers || !slices.Contains(told, "DELETE /containers/"+id) {
		t.Errorf("%v; the engine was told %q", err, told)
	}
}
