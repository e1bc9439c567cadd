package guard

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"portcullis/internal/event"
	"portcullis/verifier/image"
	"portcullis/verifier/verity"
)

// After an image was loaded its files are given verity beside everything else, so that its
// first start has nothing to read either. No start relies on that: it asks the kernel
// for each file's digest, and a file that has none gets it then (contents.go). So nothing
// of this is written down. Whoever ends the process in the middle leaves files with verity and
// files without; the kernel knows none that are half sealed.

// sealLater has the files of an image sealed, soon.
func (g *Guard) sealLater(config string) {
	g.mu.Lock()
	g.toSeal[config] = true
	g.mu.Unlock()
	signal(g.unsealed)
}

// sealing seals one file of one image after the other until ctx ends, on a thread that has the lowest
// priority and ends with it: the kernel reads and hashes on the thread that asks for verity.
func (g *Guard) sealing(ctx context.Context) {
	runtime.LockOSThread()
	unix.Setpriority(unix.PRIO_PROCESS, 0, 19) // of the thread; it may be refused
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.unsealed:
		}
		for ctx.Err() == nil {
			config, ok := g.nextToSeal()
			if !ok {
				break
			}
			g.sealImage(ctx, config)
		}
	}
}

func (g *Guard) nextToSeal() (config string, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for config = range g.toSeal {
		delete(g.toSeal, config)
		return config, true
	}
	return "", false
}

// sealed is what sealImage did.
type sealed struct {
	now, before int   // files that got verity, and that had it
	left        int   // files without it
	why         error // of the first of them
}

// sealImage seals the files of an image, and tells it. An image that is gone, or was unpacked
// anew meanwhile, is no failure: whoever loads one calls sealLater.
func (g *Guard) sealImage(ctx context.Context, config string) {
	known, dirs := g.unpackedIn(ctx, config)
	if len(dirs) == 0 || len(dirs) != len(known.Trees) {
		return // another store, or what a start refuses
	}
	c := g.comparer(false)
	var did sealed
	err := c.onDisk(dirs[0])
	for n, t := range known.Trees {
		if err == nil && t.Form == formVerity {
			err = g.sealLayer(ctx, c, dirs[n], t, &did)
		}
	}
	if ctx.Err() != nil || errors.Is(err, verity.ErrUnsupported) {
		return
	}
	if _, now := g.unpackedIn(ctx, config); !slices.Equal(now, dirs) {
		return
	}
	f := event.Fields{"image": config, "sealed": did.now, "had": did.before, "left": did.left}
	if err != nil {
		// Nothing is ended by this: a start looks for itself, and so does who watches what runs.
		f["reason"], f["detail"] = reasonOf(err)
		g.opt.Events.Emit("seal.failed", f)
		return
	}
	if did.now+did.left == 0 {
		return
	}
	if did.left > 0 {
		f["detail"] = did.why.Error()
	}
	g.opt.Events.Emit("image.sealed", f)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.layers = layersHeld{sealed: did.now + did.before, hashed: did.left, why: did.why}
}

// unpackedIn is an image that the guard loaded, and where its layers lie, the lowest first, where
// the engine has it and says so.
func (g *Guard) unpackedIn(ctx context.Context, config string) (loadedImage, []string) {
	known, ok := g.state.image(config)
	if !ok {
		return loadedImage{}, nil
	}
	i, err := g.held(ctx, known.Image)
	if err != nil {
		return loadedImage{}, nil
	}
	dirs, err := g.opt.Engine.ImageLayers(ctx, i.ID)
	if err != nil {
		return loadedImage{}, nil
	}
	return known, dirs
}

// sealLayer seals the files of one layer.
func (g *Guard) sealLayer(ctx context.Context, c *comparison, dir string, t treeOf, did *sealed) error {
	// Asked of a directory, a file system with verity says that it has none.
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return refuse(ReasonImageStore, "%v", err)
	}
	_, err = c.files.Measure(d)
	d.Close()
	if errors.Is(err, verity.ErrUnsupported) {
		return err
	}
	return g.state.list(t, func(list names) error {
		return list(func(f *image.File) error {
			if f.Kind != image.KindFile {
				return nil
			}
			g.startsFirst()
			if err := ctx.Err(); err != nil {
				return err
			}
			c.todo = c.todo[:0]
			if err := c.sameFile(dir, f, false); err != nil {
				return err
			}
			return c.sealFile(ctx, c.todo[0], did)
		})
	})
}

// startsFirst waits for a start that is under way.
func (g *Guard) startsFirst() {
	g.step.Lock()
	defer g.step.Unlock()
}

// sealFile gives a file verity if every byte of it is the image's. What counts is the digest that
// the kernel has afterwards.
func (c *comparison) sealFile(ctx context.Context, x content, did *sealed) error {
	f, err := c.open(x)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := c.files.Measure(f)
	had := err == nil
	if errors.Is(err, verity.ErrNone) {
		if sum, err = verity.Of(until{ctx, f}, x.size, 1); err != nil {
			return unreadable(x.name, err)
		}
		if sum != x.sum {
			return refuse(ReasonImageStore, "/%.200q is not the image's", x.name)
		}
		sum, err = c.seal(f, x.ino)
	}
	switch {
	case errors.Is(err, verity.ErrUnsupported):
		return err
	case err != nil:
		if did.left++; did.why == nil {
			did.why = err
		}
	case sum != x.sum:
		return refuse(ReasonImageStore, "/%.200q is not the image's", x.name)
	case had:
		did.before++
	default:
		did.now++
	}
	return nil
}

// until reads until ctx ends.
type until struct {
	ctx context.Context
	r   io.ReaderAt
}

func (u until) ReadAt(b []byte, at int64) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.ReadAt(b, at)
}
