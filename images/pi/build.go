package pi

import (
	"context"
	"fmt"
	"time"

	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/recipe"
	rootfs "portcullis/rootfs/pi"
)

// RecipeName is what a user's recipe extends to start from ours.
const RecipeName = "pi"

// arch is the Pi's architecture in Debian's words.
const arch = "arm64"

// builder is one run of Build.
type builder struct {
	o        Options
	m        *debroot.Maker
	recipe   *recipe.Recipe
	packages *debroot.Packages
	programs []program
	vendor   *vendorFiles // of the Zymbit module; nil: none
}

// Build makes the image that o describes in o.OutDir. It uses what the cache
// has and tells o.Progress what it does.
func Build(ctx context.Context, o Options) (*Result, error) {
	begin := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	r, err := debroot.Retry(o.Refresh, func(refresh bool) (*Result, error) {
		o.Refresh = refresh
		return buildOnce(ctx, o)
	})
	if err != nil {
		return nil, err
	}
	r.Took = time.Since(begin)
	return r, nil
}

func newBuilder(o Options) (*builder, error) {
	m, err := debroot.NewMaker(o.CacheDir, o.Progress, o.Refresh)
	if err != nil {
		return nil, err
	}
	b := &builder{o: o, m: m}
	if b.recipe, err = recipe.Load(recipe.Builtin{Name: RecipeName, FS: rootfs.FS, Entry: entry(o)}, o.Recipe); err != nil {
		return nil, err
	}
	return b, debroot.CheckLab(b.recipe, b.lab())
}

func buildOnce(ctx context.Context, o Options) (*Result, error) {
	b, err := newBuilder(o)
	if err != nil {
		return nil, err
	}
	m := b.m
	if b.vendor, err = b.readVendor(ctx); err != nil {
		return nil, err
	}
	if err := b.compile(ctx); err != nil {
		return nil, err
	}
	if err := guardPrograms(o.Profile, b.programs); err != nil {
		return nil, err
	}
	if b.packages, err = m.Packages(ctx, b.recipe, arch); err != nil {
		return nil, err
	}
	k, err := m.Kernel(ctx, b.packages, b.recipe)
	if err != nil {
		return nil, err
	}
	root, err := b.root(ctx, k)
	if err != nil {
		return nil, err
	}
	dir, cached, err := b.image(ctx, k, root)
	if err != nil {
		return nil, err
	}
	r, err := b.publish(dir)
	if err != nil {
		return nil, err
	}
	r.Cached = cached
	if err := m.Prune("base", "kernel", "pi-kernel", "pi-root", "pi-image"); err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	return r, nil
}

// lab tells whether the image has the lab's command channel: development images
// for QEMU only (card.Info refuses it in all others).
func (b *builder) lab() bool { return b.o.Model == card.ModelQEMU && b.o.Profile == card.ProfileDev }

// entry is our recipe for a model and profile.
func entry(o Options) string {
	if o.Model == card.ModelQEMU && o.Profile == card.ProfileDev {
		return "qemu-dev.yaml"
	}
	return o.Model + ".yaml"
}
