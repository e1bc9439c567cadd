package guard

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"portcullis/internal/event"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
)

// Archives reads what callers send as an image. Package image is the one.
type Archives interface {
	// Read takes an archive apart, once, holding every digest of it against its
	// bytes. Nothing of it is used before it is closed.
	Read(ctx context.Context, from io.Reader) (Archive, error)
}

// Archive is a sound image outside of the engine.
type Archive interface {
	Image() approval.Image
	// Tar writes the one form of it that the engine gets: from verified bytes only.
	Tar() io.ReadCloser
	Close() error
}

// load takes an image from a caller.
func (g *Guard) load(c *call) error {
	http.NewResponseController(c.w).SetReadDeadline(time.Time{})
	image, err := g.Import(c.r.Context(), c.r.Body, c.caller)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(c.w).Encode(map[string]string{"stream": "Loaded image ID: " + image + "\n"})
}

// Import reads an archive, asks for the permission and loads the image. It returns
// what the engine calls it.
func (g *Guard) Import(ctx context.Context, from io.Reader, caller string) (string, error) {
	a, err := g.opt.Images.Read(ctx, from)
	if err != nil {
		return "", err
	}
	defer a.Close()
	i := a.Image()
	permission, err := g.opt.Approvals.Decide(approval.Request{Action: approval.Load, Image: i, Caller: caller})
	if err != nil {
		return "", decided(err)
	}
	if err := g.fit(); err != nil {
		return "", err
	}
	// Engines call it by one of the two, depending on their store.
	if err := g.state.change(func(f *stateFile) {
		f.Images[i.Manifest], f.Images[i.Config] = loadedImage{i}, loadedImage{i}
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
	g.opt.Events.Emit("image.loaded", event.Fields{"image": i.Config, "manifest": i.Manifest, "approval": permission.Approval, "index": permission.Index, "caller": caller})
	return id, nil
}

// loaded finds the image in the engine, as that calls it, and compares.
func (g *Guard) loaded(ctx context.Context, i approval.Image) (string, error) {
	for _, id := range []string{i.Manifest, i.Config} {
		found, err := g.opt.Engine.Image(ctx, id)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err != nil {
			return "", err
		}
		if err := sound(found, i); err != nil {
			return "", errors.Join(err, g.opt.Engine.RemoveImage(context.WithoutCancel(ctx), found.ID))
		}
		return found.ID, nil
	}
	return "", refuse(ReasonImageStore, "the engine does not have what it was given")
}
