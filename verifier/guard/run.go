package guard

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"portcullis/internal/event"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/gate"
)

// create makes a container as it was approved, and answers its ID. It is not a
// permission to run: that is asked for at each start.
func (g *Guard) create(c *call) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	w, err := parseWish(body)
	if err != nil {
		return err
	}
	if slices.Contains(g.opt.Reserved, w.purpose) {
		return notYours(w.purpose)
	}
	name := ""
	if given := c.query["name"]; len(given) == 1 {
		name = given[0]
	}
	if slices.Contains(g.opt.ReservedNames, name) {
		return notYours("the name " + name)
	}
	ctx := c.r.Context()
	made, err := g.plan(ctx, w)
	if err != nil {
		return err
	}
	// Last: the self-test, which makes a node fit, asks for what must be refused before.
	if err := g.fit(); err != nil {
		return err
	}
	made.Spec.Name = name
	id, err := g.make(ctx, made)
	if err != nil {
		return err
	}
	g.opt.Events.Emit("container.created", event.Fields{"container": id, "image": made.Image.Config, "purpose": made.Purpose, "caller": c.caller})
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusCreated)
	json.NewEncoder(c.w).Encode(struct {
		ID       string `json:"Id"`
		Warnings []string
	}{id, []string{}})
	return nil
}

// notYours refuses a caller what the verifier has for itself.
func notYours(what string) error {
	return &approval.Error{Reason: approval.ReasonPurpose, Detail: "the verifier itself starts and ends what is for " + what}
}

// plan turns a wish into the container that may be made of it.
func (g *Guard) plan(ctx context.Context, w wish) (madeByGuard, error) {
	if len(w.image) > 255 || !isImage.MatchString(w.image) {
		return madeByGuard{}, refuse(ReasonField, "Image %.80q is no reference", w.image)
	}
	i, err := g.opt.Engine.Image(ctx, w.image)
	if errors.Is(err, engine.ErrNotFound) {
		return madeByGuard{}, refuse(ReasonImage, "%.80s: load it first; the guard pulls nothing", w.image)
	}
	if err != nil {
		return madeByGuard{}, err
	}
	loaded, ok := g.state.image(i.ID)
	if !ok {
		return madeByGuard{}, refuse(ReasonImage, "%s", i.ID)
	}
	if err := errors.Join(sound(i, loaded.Image), keepsWord(w.image, loaded.Image)); err != nil {
		return madeByGuard{}, err
	}
	most, err := approved(g.opt.Approvals.Approvals(), loaded.Image, w.purpose)
	if err != nil {
		return madeByGuard{}, err
	}
	p := w.profile(most, i.Entrypoint)
	if err := most.Covers(&p); err != nil {
		return madeByGuard{}, err
	}
	return madeByGuard{Image: loaded.Image, Purpose: w.purpose, Created: g.opt.Clock.Now(),
		Spec: engine.Spec{Image: i, Profile: p, Labels: map[string]string{PurposeLabel: w.purpose}, Tty: w.tty, Remove: w.remove,
			Runtime: g.runtime()}}, nil
}

// sound holds what the engine says of an image against what was loaded.
func sound(i engine.Image, want approval.Image) error {
	if i.ID != want.Config && i.ID != want.Manifest || !slices.Equal(i.Layers, want.Layers) {
		return refuse(ReasonImageStore, "image %s with layers %v", i.ID, i.Layers)
	}
	return nil
}

// make creates the container and reads it back. What is not as it was asked for is removed. A caller who
// goes away while the engine makes it changes nothing: the guard would not know of what the engine has made.
func (g *Guard) make(ctx context.Context, made madeByGuard) (string, error) {
	if err := g.step.within(ctx); err != nil {
		return "", err
	}
	defer g.step.Unlock()
	ctx = context.WithoutCancel(ctx)
	g.ahead(made.Spec.Image.ID)
	id, err := g.opt.Engine.Create(ctx, made.Spec)
	if err != nil {
		return "", err
	}
	d, err := g.opt.Engine.Differs(ctx, id, made.Spec)
	if err == nil && d != "" {
		err = refuse(ReasonDiffers, "%s", d)
	}
	if err == nil {
		err = g.state.change(func(f *stateFile) { f.Containers[id] = made })
	}
	if err != nil {
		return "", errors.Join(err, g.opt.Engine.Remove(ctx, id))
	}
	return id, nil
}

// start asks for the permission, looks once more at what would run, and runs it.
// A container that was to go when it ends goes also when it never starts: its caller
// waits for that.
func (g *Guard) start(c *call) error {
	if err := g.own(c); err != nil {
		return err
	}
	// Nothing is watched away and nothing else is started between the look and the start.
	g.step.Lock()
	defer g.step.Unlock()
	made, ok := g.state.container(c.name)
	if !ok {
		return refuse(ReasonContainer, "%s", c.name)
	}
	ctx := context.WithoutCancel(c.r.Context())
	err := g.paced(c.caller)
	if err == nil {
		err = g.run(ctx, c.name, c.caller, made)
	}
	if err != nil {
		if made.Spec.Remove && !made.Permitted { // one that has been started goes when it ends
			err = errors.Join(err, g.remove(ctx, c.name))
		}
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// run starts what was made. g.step is held.
func (g *Guard) run(ctx context.Context, id, caller string, made madeByGuard) error {
	if err := g.fit(); err != nil {
		return err
	}
	c := g.comparer(false)
	start := g.startCompared
	if made.Spec.Runtime == gate.Runtime {
		c.left, start = putOffBytes, g.startHeld
		// For one that runs already the engine does nothing, and so nobody asks.
		if made.Permitted {
			if st, err := g.opt.Engine.Standing(ctx, id); err != nil || st.Running {
				return err
			}
		}
	}
	if err := g.asApproved(ctx, c, id, made); err != nil {
		return err
	}
	g.still.Delete(id)
	rest := func() error { return g.rest(ctx, c, made) }
	if err := start(ctx, id, rest, func() error { return g.permit(id, caller, &made) }); err != nil {
		return err
	}
	g.opt.Events.Emit("container.started", event.Fields{"container": id, "image": made.Image.Config, "purpose": made.Purpose,
		"approval": made.Permission.Approval, "index": made.Permission.Index, "caller": caller})
	// A revocation that came meanwhile looked at what ran then.
	g.standing(ctx)
	return nil
}

// startCompared starts a container whose runtime asks nobody.
func (g *Guard) startCompared(ctx context.Context, id string, rest, permit func() error) error {
	for _, before := range []func() error{rest, permit} {
		if err := before(); err != nil {
			return err
		}
	}
	return g.opt.Engine.Start(ctx, id)
}

// permit asks for the permission and keeps it, before it takes effect.
func (g *Guard) permit(id, caller string, made *madeByGuard) error {
	permission, err := g.opt.Approvals.Decide(approval.Request{Action: approval.Start, Image: made.Image, Purpose: made.Purpose,
		Profile: &made.Spec.Profile, Caller: caller})
	if err != nil {
		return decided(err)
	}
	made.Permission, made.Permitted = permission, true
	return g.state.change(func(f *stateFile) { f.Containers[id] = *made })
}

// asApproved compares a container, its image and the files that it will be made of, the files while
// the engine answers for the others.
func (g *Guard) asApproved(ctx context.Context, c *comparison, id string, made madeByGuard) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	files := make(chan error, 1)
	go func() { files <- g.unpackedBy(ctx, c, id, made, !made.Permitted && !made.Begun) }()
	err := g.inspect(ctx, id, made)
	if err != nil {
		cancel()
		<-files // nothing goes on behind our back
		return err
	}
	return <-files
}

// remove takes a container out of the engine and out of the state.
func (g *Guard) remove(ctx context.Context, id string) error {
	if err := g.opt.Engine.Remove(ctx, id); err != nil && !errors.Is(err, engine.ErrNotFound) {
		return err
	}
	return g.state.change(func(f *stateFile) { delete(f.Containers, id) })
}

// inspect holds a container and its image against what was approved.
func (g *Guard) inspect(ctx context.Context, id string, made madeByGuard) error {
	i, err := g.opt.Engine.Image(ctx, made.Spec.Image.ID)
	if errors.Is(err, engine.ErrNotFound) {
		return refuse(ReasonImageStore, "the image is gone")
	}
	if err != nil {
		return err
	}
	if err := sound(i, made.Image); err != nil {
		return err
	}
	d, err := g.opt.Engine.Differs(ctx, id, made.Spec)
	if err != nil {
		return err
	}
	if d != "" {
		return refuse(ReasonDiffers, "%s", d)
	}
	return nil
}
