package hpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/deb"
	"portcullis/images/manifest"
	"portcullis/images/recipe"
	rootfs "portcullis/rootfs/hpc"
)

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
	recipe  *recipe.Recipe
	store   *deb.Store
	request deb.Request
	lock    *deb.Lock

	rootDebs, kernelDebs, firmwareDebs []deb.Package
	stubDeb                            deb.Package

	digests Binaries // SHA-256 of the programs
	stages  int      // begun so far
}

// Build makes the image that o describes in o.OutDir. It uses what the cache
// has and tells o.Progress what it does.
func Build(ctx context.Context, o Options) (*Result, error) {
	begin := time.Now()
	if o.Progress == nil {
		o.Progress = quiet{}
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	r, err := buildOnce(ctx, o)
	if errors.Is(err, deb.ErrFetch) && !o.Refresh {
		// The archive has moved on since it was asked: what was resolved then is no longer there.
		o.Refresh = true
		r, err = buildOnce(ctx, o)
	}
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
	if err := b.checkProfile(); err != nil {
		return nil, err
	}
	if err := b.programs(ctx); err != nil {
		return nil, err
	}
	if err := b.resolve(ctx); err != nil {
		return nil, err
	}
	if err := b.split(); err != nil {
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
	if err := b.prune(); err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	return &Result{Dir: b.OutDir, Manifest: *m, Digest: digest, Cached: cached}, nil
}

func newBuilder(o Options) (*builder, error) {
	b := &builder{Options: o}
	var err error
	if b.CacheDir, err = filepath.Abs(b.CacheDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.CacheDir, 0o755); err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	b.store = &deb.Store{Dir: filepath.Join(b.CacheDir, "deb")}
	b.recipe, err = recipe.Load(rootfs.FS, b.Profile, b.Recipe)
	return b, err
}

// begin opens a stage for the progress; the returned function ends it, unless
// stages inside it have ended it already.
func (b *builder) begin(name, detail string) func(cached bool) {
	start := time.Now()
	b.stages++
	mine := b.stages
	b.Progress.Stage(name, detail)
	return func(cached bool) {
		if b.stages == mine {
			b.Progress.Done(cached, time.Since(start))
		}
	}
}
