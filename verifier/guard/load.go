package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"portcullis/internal/event"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/image"
)

// load takes an image from a caller.
func (g *Guard) load(c *call) error {
	if err := g.paced(c.caller); err != nil {
		return err
	}
	leave, err := g.enter(c.r.Context(), c.caller)
	if err != nil {
		return err
	}
	defer leave()
	name, err := g.Import(c.r.Context(), g.intake(c), c.caller)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(c.w).Encode(map[string]string{"stream": "Loaded image: " + name + "\n"})
}

// Import reads an archive, asks for the permission and loads the image. It returns
// the name under which it can be run.
func (g *Guard) Import(ctx context.Context, from io.Reader, caller string) (string, error) {
	lists := newLists{state: g.state}
	defer lists.Close()
	a, err := g.opt.Read(ctx, from, image.Options{Layer: lists.add})
	if err != nil {
		return "", err
	}
	defer a.Close()
	return g.put(ctx, a, &lists, caller, true)
}

// put loads an image that was read, with its lists; keep is for one that did not come out of what is kept.
func (g *Guard) put(ctx context.Context, a *image.Archive, lists *newLists, caller string, keep bool) (string, error) {
	i := a.Image()
	permission, err := g.opt.Approvals.Decide(approval.Request{Action: approval.Load, Image: i, Caller: caller})
	if err != nil {
		return "", decided(err)
	}
	if err := g.fit(); err != nil {
		return "", err
	}
	renewed, err := g.renew(ctx, i)
	if err != nil {
		return "", err
	}
	trees, err := lists.keep(i.Layers)
	if err != nil {
		return "", err
	}
	if keep && g.opt.Kept != "" {
		if err := g.keep(a, permission.Name, i); err != nil {
			return "", err
		}
	}
	// Engines call it by one of the two, depending on their store.
	if err := g.state.change(func(f *stateFile) {
		f.Images[i.Manifest], f.Images[i.Config] = loadedImage{i, trees}, loadedImage{i, trees}
	}); err != nil {
		return "", err
	}
	tar := a.Tar()
	err = g.opt.Engine.Load(ctx, tar)
	if err = errors.Join(err, tar.Close()); err != nil {
		return "", err
	}
	id, err := g.loaded(ctx, i)
	if err != nil {
		return "", err
	}
	// Names for people: what they mean is asked of the engine and of the approvals at each use.
	name := fmt.Sprintf("%s:%s-%d", Repository, permission.Name, permission.Version)
	for _, n := range []string{name, digestName(i.Config)} {
		if err := g.opt.Engine.Tag(ctx, id, n); err != nil {
			return "", err
		}
	}
	g.opt.Events.Emit("image.loaded", event.Fields{"image": i.Config, "manifest": i.Manifest, "approval": permission.Approval, "index": permission.Index, "caller": caller})
	g.sealLater(i.Config)
	if renewed {
		// What went with it comes back from what is kept.
		g.fill(context.WithoutCancel(ctx))
	}
	return name, nil
}

// Repository is where loaded images are named, by their approval's name and version, and by their digest.
const Repository = "portcullis/approved"

// digestTag begins the name that says by itself which image it is of; a tag has no colon. No approval's name and
// version look like it: a version has fewer digits.
const digestTag = Repository + ":sha256-"

// digestName is the name that has the digest of an image's configuration in it, under which the approvals,
// revocations and the log know it.
func digestName(config string) string { return digestTag + strings.TrimPrefix(config, "sha256:") }

// keepsWord refuses a name by digest, with or without a registry before it, that leads to another image: whoever
// writes to the engine's store can move names.
func keepsWord(name string, i approval.Image) error {
	if _, hex, ok := strings.Cut(name, digestTag); ok && "sha256:"+hex != i.Config {
		return refuse(ReasonImageStore, "%.150s leads to %s", name, i.Config)
	}
	return nil
}

// loaded finds the image in the engine, and compares.
func (g *Guard) loaded(ctx context.Context, i approval.Image) (string, error) {
	found, err := g.held(ctx, i)
	if errors.Is(err, engine.ErrNotFound) {
		return "", refuse(ReasonImageStore, "the engine does not have what it was given")
	}
	if err != nil {
		return "", err
	}
	if err := sound(found, i); err != nil {
		return "", errors.Join(err, g.opt.Engine.RemoveImage(context.WithoutCancel(ctx), found.ID))
	}
	return found.ID, nil
}

// held is what the engine has under one of the two names of an image: the containerd
// store calls it by its manifest, the other by its configuration.
func (g *Guard) held(ctx context.Context, i approval.Image) (engine.Image, error) {
	found, err := g.opt.Engine.Image(ctx, i.Manifest)
	if errors.Is(err, engine.ErrNotFound) {
		return g.opt.Engine.Image(ctx, i.Config)
	}
	return found, err
}
