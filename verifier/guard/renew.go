package guard

import (
	"context"
	"errors"
	"slices"

	"portcullis/internal/event"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
)

// Engines do not unpack again what they have: an image whose files were changed in
// their store stays as it is, however often it is loaded. So one that is brought again
// is compared first, and what is damaged is taken out with all that stands on it.

// compared is the container that an image is compared by. It is never started.
var compared = approval.Profile{User: "65534:65534", Network: approval.NetworkNone, Command: []string{"/"},
	Limits: approval.Limits{MemoryBytes: 16 << 20, Pids: 1, MilliCPU: 100}}

// renew makes the engine forget an image that it holds damaged. It tells whether it did.
func (g *Guard) renew(ctx context.Context, i approval.Image) (bool, error) {
	// One after the other: another one's container would hold the layers that are to go.
	g.renewing.Lock()
	defer g.renewing.Unlock()
	id, made, err := g.comparison(ctx, i)
	if err != nil || id == "" {
		return false, err
	}
	// This takes as long as the image is large. All else goes on meanwhile.
	before, err := g.layersOf(ctx, id)
	if err == nil {
		err = g.unpacked(ctx, id, made, true, true)
	}
	// Now nothing of the image is made or started.
	g.step.Lock()
	defer g.step.Unlock()
	var own *Error
	if err == nil || errors.As(err, &own) {
		// What was compared has to be there as it was. A difference is looked at once more,
		// for it may have been a container on its way out.
		var after engine.Layers
		if after, err = g.layersOf(ctx, id); err == nil && (own != nil || after.Upper != before.Upper || !slices.Equal(after.Lower, before.Lower)) {
			err = g.unpacked(ctx, id, made, true, true)
		}
	}
	delete(g.comparing, id)
	if gone := g.opt.Engine.Remove(context.WithoutCancel(ctx), id); !errors.Is(gone, engine.ErrNotFound) {
		err = errors.Join(err, gone)
	}
	own = nil
	if err == nil || !errors.As(err, &own) {
		return false, err
	}
	return true, g.forget(context.WithoutCancel(ctx), i, own)
}

// comparison makes the container by which an image is compared that the guard has loaded;
// its id is empty where there is none of it. It is not taken for a stranger's.
func (g *Guard) comparison(ctx context.Context, i approval.Image) (id string, made madeByGuard, err error) {
	if err := g.step.within(ctx); err != nil {
		return "", made, err
	}
	defer g.step.Unlock()
	held, err := g.held(ctx, i)
	if errors.Is(err, engine.ErrNotFound) {
		return "", made, nil
	}
	if err != nil {
		return "", made, err
	}
	if _, ok := g.state.image(held.ID); !ok {
		return "", made, nil // it was not the guard that loaded it: reconcile removes it
	}
	made = madeByGuard{Image: i, Spec: engine.Spec{Image: held, Profile: compared}}
	// As in make: what was made has to be known.
	if id, err = g.opt.Engine.Create(context.WithoutCancel(ctx), made.Spec); err == nil {
		g.comparing[id] = true
	}
	return id, made, err
}

// forget takes out of the engine every image that shares a layer with i, and their
// containers: only then the layers go. g.step is held.
func (g *Guard) forget(ctx context.Context, i approval.Image, why *Error) error {
	shares := func(other approval.Image) bool {
		return slices.ContainsFunc(other.Layers, func(l string) bool { return slices.Contains(i.Layers, l) })
	}
	for id, made := range g.state.containers() {
		if shares(made.Image) {
			g.end(ctx, id, why)
		}
	}
	done := map[string]bool{}
	for _, known := range g.state.images() {
		if done[known.Image.Manifest] || !shares(known.Image) {
			continue
		}
		done[known.Image.Manifest] = true
		held, err := g.held(ctx, known.Image)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err == nil {
			err = g.opt.Engine.RemoveImage(ctx, held.ID)
		}
		if err != nil {
			return err
		}
		g.opt.Events.Emit("image.removed", event.Fields{"image": known.Image.Config, "reason": why.Reason, "detail": why.Detail})
	}
	return nil
}
