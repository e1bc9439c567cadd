package hpc

import (
	"context"
	"fmt"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/manifest"
	"portcullis/images/recipe"
	rootfs "portcullis/rootfs/hpc"
)

// RecipeName is what a user's recipe extends to start from ours.
const RecipeName = "hpc"

// arch is the PC's architecture in Debian's words.
const arch = "amd64"

// Result tells what was built.
type Result struct {
	Dir      string // OutDir
	Manifest manifest.Manifest
	Digest   [32]byte // of the manifest's payload
	Cached   bool     // nothing had to be made
	Took     time.Duration
}

// builder is one run of Build.
type builder struct {
	Options
	*debroot.Maker
	recipe   *recipe.Recipe
	packages *debroot.Packages
	digests  Binaries // SHA-256 of the programs
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

func buildOnce(ctx context.Context, o Options) (*Result, error) {
	b, err := newBuilder(o)
	if err != nil {
		return nil, err
	}
	if err := debroot.CheckLab(b.recipe, b.lab()); err != nil {
		return nil, err
	}
	if err := b.programs(ctx); err != nil {
		return nil, err
	}
	if b.packages, err = b.Packages(ctx, b.recipe, arch); err != nil {
		return nil, err
	}
	k, err := b.Kernel(ctx, b.packages, b.recipe)
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
	m, digest, err := b.publish(dir, root)
	if err != nil {
		return nil, err
	}
	if err := b.Prune("base", "kernel", "about", "root", "image"); err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	return &Result{Dir: b.OutDir, Manifest: *m, Digest: digest, Cached: cached}, nil
}

func newBuilder(o Options) (*builder, error) {
	m, err := debroot.NewMaker(o.CacheDir, o.Progress, o.Refresh)
	if err != nil {
		return nil, err
	}
	b := &builder{Options: o, Maker: m}
	b.recipe, err = recipe.Load(recipe.Builtin{Name: RecipeName, FS: rootfs.FS, Entry: b.Profile + ".yaml"}, b.Recipe)
	if err == nil && b.recipe.Kernel.Stub == "" {
		err = refuse(debroot.ReasonOptions, "kernel.stub is set nowhere: 'extends: %s' gives it", RecipeName)
	}
	return b, err
}

// lab tells whether the image has the lab's command channel.
func (b *builder) lab() bool { return b.Profile == manifest.ProfileLab }
