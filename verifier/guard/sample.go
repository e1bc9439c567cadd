package guard

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"portcullis/verifier/engine"
	"portcullis/verifier/image"
)

// While containers run, their layers are looked at in samples: whoever can write to
// the engine's store can exchange a library after the start, too. What a round may
// cost is bounded, so that a small computer is not kept busy by it.
const (
	sampleFiles = 256      // of one layer in one round
	sampleBytes = 32 << 20 // that are read in one round; at least one file
	sampleRest  = 19       // times as long as a round took nothing is looked at: the lists of large images are long
)

// place is an unpacked layer that running containers use.
type place struct {
	dir  string
	tree treeOf
	ids  []string // of the containers
}

// sampling goes on until ctx ends.
func (g *Guard) sampling(ctx context.Context) {
	dirs := map[string]engine.Layers{}
	wait := g.opt.Sample
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.opt.Clock.After(wait):
		}
		began := g.opt.Clock.Now()
		suspects := g.sample(ctx, dirs)
		wait = max(g.opt.Sample, sampleRest*g.opt.Clock.Now().Sub(began))
		for _, id := range suspects {
			g.suspect(ctx, id)
		}
	}
}

// sample makes one round and returns the containers that something is wrong with.
// dirs remembers where the layers of a container lie.
func (g *Guard) sample(ctx context.Context, dirs map[string]engine.Layers) (suspects []string) {
	list, err := g.opt.Engine.Containers(ctx)
	if err != nil {
		return nil // reconcile tells
	}
	maps.DeleteFunc(dirs, func(id string, _ engine.Layers) bool {
		return !slices.ContainsFunc(list, func(c engine.Container) bool { return c.ID == id })
	})
	places := map[string]*place{}
	for _, c := range list {
		made, ok := g.state.container(c.ID)
		if !ok || !made.Permitted || c.State != "running" && c.State != "paused" {
			continue
		}
		if g.findPlaces(ctx, c.ID, made, dirs, places) != nil {
			suspects = append(suspects, c.ID)
		}
	}
	left := int64(sampleBytes)
	all := make([]*place, 0, len(places))
	for _, p := range places {
		all = append(all, p)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, p := range all {
		if ctx.Err() != nil || left <= 0 {
			break
		}
		if g.samplePlace(ctx, p, &left) != nil {
			suspects = append(suspects, p.ids...)
		}
	}
	slices.Sort(suspects)
	return slices.Compact(suspects)
}

// findPlaces adds the layers of a container, and looks at what lies above the image,
// which is little.
func (g *Guard) findPlaces(ctx context.Context, id string, made madeByGuard, dirs map[string]engine.Layers, places map[string]*place) error {
	l, ok := dirs[id]
	if !ok {
		var err error
		var own *Error
		if l, err = g.layersOf(ctx, id); errors.As(err, &own) {
			return err
		} else if err != nil {
			return nil // it is gone, or the engine is: reconcile tells
		}
		dirs[id] = l
	}
	loaded, ok := g.state.image(made.Spec.Image.ID)
	if !ok {
		return nil
	}
	if len(l.Lower) != len(loaded.Trees)+1 {
		return refuse(ReasonImageStore, "%d directories for %d layers", len(l.Lower), len(loaded.Trees))
	}
	for n, t := range loaded.Trees {
		dir := l.Lower[len(l.Lower)-1-n]
		if places[dir] == nil {
			places[dir] = &place{dir: dir, tree: t}
		}
		places[dir].ids = append(places[dir].ids, id)
	}
	err := onlyPlaces(l.Lower[0], engineNames)
	if err == nil && !made.Spec.Profile.WritableRoot {
		err = onlyPlaces(l.Upper, nil)
	}
	return err
}

// suspect looks at everything of a container while nothing else changes: what the
// sample saw may have been a container on its way out. It ends what is wrong.
func (g *Guard) suspect(ctx context.Context, id string) {
	g.step.Lock()
	defer g.step.Unlock()
	made, ok := g.state.container(id)
	if !ok {
		return
	}
	err := g.unpacked(ctx, id, made, false, true)
	var own *Error
	if errors.As(err, &own) {
		g.end(ctx, id, err)
	}
}

// samplePlace compares some names of a layer, drawn anew each time, and how many
// names it has. left is what may still be read in this round.
func (g *Guard) samplePlace(ctx context.Context, p *place, left *int64) error {
	files, implied, names, err := g.state.draw(p.tree, sampleFiles)
	if err != nil {
		return err
	}
	c := g.comparer(true)
	c.form = p.tree.Form
	if err := c.onDisk(p.dir); err != nil {
		return err
	}
	for i := range files {
		f := &files[i]
		if f.Kind == image.KindFile && *left <= 0 {
			continue
		}
		if f.Kind == image.KindFile {
			*left -= f.Size
		}
		if err := c.sameFile(p.dir, &f.File, f.opaque); err != nil {
			return err
		}
	}
	if err := c.contents(ctx); err != nil {
		return err
	}
	for _, name := range implied {
		if err := sameXattrs(filepath.Join(p.dir, name), &image.File{Path: name, Kind: image.KindDir}, false, c.by); err != nil {
			return err
		}
	}
	found := 0
	err = filepath.WalkDir(p.dir, func(_ string, _ fs.DirEntry, err error) error { found++; return err })
	if err != nil || found != names {
		return refuse(ReasonImageStore, "%d names in %s, the image has %d", found, p.dir, names)
	}
	return nil
}

// drawn is a name of a layer.
type drawn struct {
	image.File
	opaque bool // of a directory: the list says so behind it
}

// draw reads the list of a layer, as a stream, and draws most of its names at random,
// each with the same chance. implied are directories that are not in the list, but
// have names in them that are; there are few. names is how many the layer's directory
// has in all, itself included.
func (s *state) draw(t treeOf, most int) (out []drawn, implied []string, names int, err error) {
	f, err := os.Open(s.treePath(t))
	if err != nil {
		return nil, nil, 0, err
	}
	defer f.Close()
	there := map[string]bool{".": false} // directories, and whether the list has them
	n, last := 0, -1                     // seen; where the last one is in out
	err = t.read(f, func(file *image.File) error {
		next := drawn{File: *file}
		for dir := filepath.Dir(next.Path); ; dir = filepath.Dir(dir) {
			if _, known := there[dir]; known {
				break
			}
			there[dir] = false
		}
		switch next.Kind {
		case image.KindOpaque:
			there[next.Path] = true
			if last >= 0 && out[last].Path == next.Path {
				out[last].opaque = true
			}
		case image.KindDir:
			there[next.Path] = true
		default:
			names++
		}
		last = -1
		if n++; len(out) < most {
			last = len(out)
			out = append(out, next)
		} else if i := rand.IntN(n); i < most {
			last, out[i] = i, next
		}
		return nil
	})
	if err != nil {
		return nil, nil, 0, err
	}
	for dir, listed := range there {
		if !listed {
			implied = append(implied, dir)
		}
	}
	return out, implied, names + len(there), nil
}
