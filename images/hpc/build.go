package hpc

import (
	"context"
	"fmt"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/kernel"
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
	k, err := b.kernel(ctx)
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

// kernel unpacks Debian's kernel, or takes the hardened one, which must have been built.
func (b *builder) kernel(ctx context.Context) (*debroot.Kernel, error) {
	if b.recipe.Kernel.Build == "" {
		return b.Maker.Kernel(ctx, b.packages, b.recipe)
	}
	built, err := kernel.Find(ctx, b.Maker, b.recipe, b.packages)
	if err != nil {
		return nil, err
	}
	k, r, err := b.UseKernel(ctx, built.Own(), b.packages, b.recipe)
	if err != nil {
		return nil, err
	}
	b.recipe = r
	return k, nil
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
	switch {
	case err != nil:
		return nil, err
	case b.Options.Kernel == KernelDebian:
		b.recipe.Kernel.Build = ""
	case b.Options.Kernel == KernelHardened:
		b.recipe.Kernel.Build = recipe.BuildHardened
	}
	return b, nil
}

// lab tells whether the image has the lab's command channel.
func (b *builder) lab() bool { return b.Profile == manifest.ProfileLab }
