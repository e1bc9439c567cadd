package lab

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"portcullis/attestserver/identity"
	"portcullis/images/hpc"
	"portcullis/images/manifest"
)

// Builder builds programs and the lab image once for all labs that share it.
type Builder struct {
	Repository string // "" = the checkout around the working directory
	Kernel     string // of the PC's image: hpc.KernelHardened must have been built; "" = Debian's
	Recipe     string // of the PC's image, below the repository: it extends the lab's; "" = that alone

	mu    sync.Mutex
	built *Built
	onPi  map[bool]*Built // by whether the services are containers
}

// Built is what a lab needs from a build.
type Built struct {
	Repository    string
	Bin           string            // programs
	Image         string            // directory of the lab image
	ReleaseKey    string            // base64 public key that signed it
	ReleaseSecret string            // file of its secret half: tests sign bad manifests with it
	GatewayKey    string            // file of the gateway's identity; "" with a Pi that keeps its own
	Gateway       ed25519.PublicKey // who the PC's agent believes
	Pi            *BuiltPi          // of a lab whose Pi is a machine
}

// keptImages is how many lab images stay in the build directory.
const keptImages = 6

// Build builds, or returns what it built before. say is told what is being done.
func (b *Builder) Build(ctx context.Context, say func(what string)) (*Built, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.built != nil {
		return b.built, nil
	}
	start := b.Repository
	if start == "" {
		start = "."
	}
	repo, err := FindRepository(start)
	if err != nil {
		return nil, err
	}
	built, err := programsOf(ctx, repo, say)
	if err != nil {
		return nil, err
	}
	unlock, err := buildLock(ctx, repo, "image")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := built.keys(); err != nil {
		return nil, err
	}
	if err := built.image(ctx, b.Kernel, b.Recipe, say); err != nil {
		return nil, err
	}
	b.built = built
	return built, nil
}

func programsOf(ctx context.Context, repo string, say func(string)) (*Built, error) {
	say("programs")
	bin, err := buildPrograms(ctx, repo)
	if err != nil {
		return nil, err
	}
	return &Built{Repository: repo, Bin: bin}, nil
}

func (b *Built) dir() string { return filepath.Join(b.Repository, "build", "lab") }

// keys makes the keys of this checkout's labs where there are none yet. They stay
// the same so that the image stays cached.
func (b *Built) keys() error {
	b.GatewayKey = filepath.Join(b.dir(), "gateway.key")
	gateway, err := identity.LoadOrCreate(b.GatewayKey)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	b.Gateway = identity.PublicKey(gateway)
	b.ReleaseSecret = filepath.Join(b.dir(), "release.key")
	if _, err := os.Stat(b.ReleaseSecret); errors.Is(err, fs.ErrNotExist) {
		if _, err := manifest.GenerateKey(b.ReleaseSecret); err != nil {
			return fmt.Errorf("lab: release key: %w", err)
		}
	}
	return nil
}

// image makes the lab image for b's gateway, with a kernel and of a recipe, signed by
// b's release key.
func (b *Built) image(ctx context.Context, kernel, recipe string, say func(string)) error {
	if recipe != "" {
		recipe = filepath.Join(b.Repository, recipe)
	}
	release, err := manifest.LoadKey(b.ReleaseSecret)
	if err != nil {
		return fmt.Errorf("lab: release key: %w", err)
	}
	b.ReleaseKey = base64.StdEncoding.EncodeToString(identity.PublicKey(release))
	dir := b.dir()
	out, err := os.MkdirTemp(dir, ".image-")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(out)
	_, err = hpc.Build(ctx, hpc.Options{
		Profile: manifest.ProfileLab, Recipe: recipe, Kernel: kernel, Signers: []crypto.Signer{release}, GatewayKey: b.Gateway,
		OutDir: out, CacheDir: filepath.Join(b.Repository, "build", "cache"), Progress: &progress{say: say},
		Binaries: hpc.Binaries{
			Init: filepath.Join(b.Bin, "hpc-init"), Agent: filepath.Join(b.Bin, "hpc-agent"), Lab: filepath.Join(b.Bin, "hpc-lab"),
		},
	})
	if err != nil {
		return fmt.Errorf("lab: building the lab image: %w", err)
	}
	// Each image has a directory of its own: a lab that is running keeps its image
	// when the next one is built.
	envelope, err := os.ReadFile(filepath.Join(out, manifest.Envelope))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	digest := sha256.Sum256(envelope)
	b.Image = filepath.Join(dir, "image-"+hex.EncodeToString(digest[:8]))
	now := time.Now()
	if exists(b.Image) {
		os.Chtimes(b.Image, now, now)
	} else if err := os.Rename(out, b.Image); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	prune(dir)
	return nil
}

// prune removes the oldest images beyond keptImages.
func prune(dir string) {
	found, _ := filepath.Glob(filepath.Join(dir, "image-*"))
	sort.Slice(found, func(i, j int) bool { return modified(found[i]).After(modified(found[j])) })
	for _, old := range found[min(keptImages, len(found)):] {
		os.RemoveAll(old)
	}
}

func modified(p string) time.Time {
	st, err := os.Stat(p)
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// progress tells the stages of an image build.
type progress struct{ say func(string) }

func (p *progress) Stage(name, detail string) { p.say(name + " " + detail) }
func (p *progress) Step(int64, int64)         {}
func (p *progress) Done(bool, time.Duration)  {}
