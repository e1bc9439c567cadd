package engine

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/verifier/stamp"
)

// An engine that takes a request and never answers holds nobody up for ever: every step that is neither a
// transfer nor made for waiting has an end of its own, whatever the caller's context says.
func TestEngineThatHangs(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "engine"))
	if err != nil {
		t.Fatal(err)
	}
	let := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		if !strings.HasSuffix(r.URL.Path, "/_ping") {
			<-let
		}
	})}
	go srv.Serve(l)
	t.Cleanup(func() { close(let); srv.Close() })
	c, err := New(l.Addr().String(), stamp.New(time.Now))
	if err != nil {
		t.Fatal(err)
	}
	if c.wait <= 0 {
		t.Fatal("a client without an end")
	}
	c.wait = 10 * time.Millisecond
	for name, call := range map[string]func(context.Context) error{
		"image":        func(ctx context.Context) error { _, err := c.Image(ctx, "x"); return err },
		"images":       func(ctx context.Context) error { _, err := c.Images(ctx); return err },
		"remove image": func(ctx context.Context) error { return c.RemoveImage(ctx, "x") },
		"tag":          func(ctx context.Context) error { return c.Tag(ctx, "x", "y:1") },
		"containers":   func(ctx context.Context) error { _, err := c.Containers(ctx); return err },
		"resolve":      func(ctx context.Context) error { _, err := c.Resolve(ctx, "x"); return err },
		"image of":     func(ctx context.Context) error { _, err := c.ImageOf(ctx, "x"); return err },
		"create":       func(ctx context.Context) error { _, err := c.Create(ctx, Spec{}); return err },
		"differs":      func(ctx context.Context) error { _, err := c.Differs(ctx, "x", Spec{}); return err },
		"start":        func(ctx context.Context) error { return c.Start(ctx, "x") },
		"pause":        func(ctx context.Context) error { return c.Pause(ctx, "x") },
		"kill":         func(ctx context.Context) error { return c.Kill(ctx, "x") },
		"remove":       func(ctx context.Context) error { return c.Remove(ctx, "x") },
		"info":         func(ctx context.Context) error { _, err := c.Info(ctx); return err },
		"layers":       func(ctx context.Context) error { _, err := c.Layers(ctx, "x"); return err },
		"image layers": func(ctx context.Context) error { _, err := c.ImageLayers(ctx, "x"); return err },
		"layers told":  func(ctx context.Context) error { return c.LayersTold(ctx, Info{Containerd: true}) },
		"standing":     func(ctx context.Context) error { _, err := c.Standing(ctx, "x"); return err },
		"last":         func(ctx context.Context) error { _, err := c.Last(ctx, "x"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			go func() { ended <- call(t.Context()) }()
			select {
			case err := <-ended:
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Error("it goes on")
			}
		})
	}
}
