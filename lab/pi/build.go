package pi

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"portcullis/hardware/escrow"
	"portcullis/images/card"
	"portcullis/images/deb"
	imagespi "portcullis/images/pi"
	"portcullis/verifier/declared"
)

// Variant is one image of a checkout. The zero value of each field is the default
// in brackets.
type Variant struct {
	Model    string // [qemu]
	Profile  string // [dev]
	Sequence uint64 // [1]
	Recipe   string // a recipe file that extends the project's [none]

	ZymbitDebs string // directory with the packages of who plays Zymbit [none]
	Root       string // chip that first boot enrols [card.RootAuto]

	Services string // directory with the services as container images, of Builder.Services [none]
}

func (v *Variant) fill() {
	if v.Model == "" {
		v.Model = card.ModelQEMU
	}
	if v.Profile == "" {
		v.Profile = card.ProfileDev
	}
	if v.Sequence == 0 {
		v.Sequence = 1
	}
}

// Image is a built image.
type Image struct {
	Variant Variant
	Dir     string // everything that the build made
	Card    string // pi.img.zst
	Bundle  string // pi.pcupdate
	Digest  string // hex SHA-256 of pi.img.zst
}

// Builder builds images of one checkout and keeps what comes of them below its
// build/pi: the labs' keys, images, and cards after their first boot.
type Builder struct {
	Repository string       // root of the checkout
	Say        func(string) // is told what is being done; nil = nobody

	mu     sync.Mutex
	images map[Variant]*Image
	bin    string // directory with the programs of all images; "" = not compiled yet
}

func (b *Builder) dir(rel string) string { return filepath.Join(b.Repository, "build", "pi", rel) }

func (b *Builder) say(format string, args ...any) {
	if b.Say != nil {
		b.Say(fmt.Sprintf(format, args...))
	}
}

// lock keeps other processes off a thing below build/pi.
func (b *Builder) lock(ctx context.Context, what string) (unlock func(), err error) {
	if err := os.MkdirAll(b.dir(""), 0o755); err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	return deb.FileLock(ctx, b.dir(what+".lock"))
}

// Keys are the keys with which this checkout's lab images are signed; they are
// made where there are none yet.
func (b *Builder) Keys(ctx context.Context) (*imagespi.Keys, error) {
	unlock, err := b.lock(ctx, "keys")
	if err != nil {
		return nil, err
	}
	defer unlock()
	prefix := b.KeyFile()
	if _, err := os.Stat(prefix); errors.Is(err, fs.ErrNotExist) {
		return imagespi.GenerateKeys(prefix)
	}
	return imagespi.LoadKeys(prefix)
}

// KeyFile is the file of the release key, below which the others are.
func (b *Builder) KeyFile() string { return b.dir("release") }

// Seed has settings with which all services start: see DefaultSeed.
func (b *Builder) Seed(ctx context.Context) (string, error) {
	_, operator, err := b.Operator(ctx)
	if err != nil {
		return "", err
	}
	release, err := b.ReleaseKey(ctx)
	if err != nil {
		return "", err
	}
	return DefaultSeed(operator, release), nil
}

// ReleaseKey is the public release key as configurations have it.
func (b *Builder) ReleaseKey(ctx context.Context) (string, error) {
	k, err := b.Keys(ctx)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(k.Public()), nil
}

// Operator is who can read the escrowed recovery keys of this checkout's labs:
// the file of the identity and its public half. It is made where there is none.
func (b *Builder) Operator(ctx context.Context) (path, recipient string, err error) {
	unlock, err := b.lock(ctx, "operator")
	if err != nil {
		return "", "", err
	}
	defer unlock()
	path = b.dir("operator.key")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		r, err := escrow.Generate(path)
		if err != nil {
			return "", "", fmt.Errorf("pi: operator's key: %w", err)
		}
		return path, r.String(), nil
	}
	id, err := escrow.LoadIdentity(path)
	if err != nil {
		return "", "", fmt.Errorf("pi: operator's key: %w", err)
	}
	return path, id.Recipient().String(), nil
}

// Image builds an image, or returns what it built before. The build itself
// caches what has not changed.
func (b *Builder) Image(ctx context.Context, v Variant) (*Image, error) {
	v.fill()
	b.mu.Lock()
	defer b.mu.Unlock()
	if img := b.images[v]; img != nil {
		return img, nil
	}
	keys, err := b.Keys(ctx)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("image-%s-%s-%d", v.Model, v.Profile, v.Sequence)
	if more := v.Recipe + v.ZymbitDebs + v.Root + v.Services; more != "" {
		h := sha256.Sum256([]byte(v.Recipe + "\x00" + v.ZymbitDebs + "\x00" + v.Root + "\x00" + v.Services))
		name += "-" + hex.EncodeToString(h[:4])
	}
	unlock, err := b.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	b.say("the Pi's image (%s, %s, sequence %d)", v.Model, v.Profile, v.Sequence)
	out := b.dir(name)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	var services []string
	if v.Services != "" {
		if services, err = declared.Archives(ctx, v.Services); err != nil {
			return nil, fmt.Errorf("pi: the services' images: %w", err)
		}
	}
	if err := b.programs(ctx); err != nil {
		return nil, fmt.Errorf("pi: the programs: %w", err)
	}
	_, err = imagespi.Build(ctx, imagespi.Options{
		Model: v.Model, Profile: v.Profile, Recipe: v.Recipe, Sequence: v.Sequence, Keys: keys, OutDir: out,
		ZymbitDebs: v.ZymbitDebs, Root: v.Root, Services: services, Bin: b.bin,
		CacheDir: b.cacheDir(), Progress: progress{b},
	})
	if err != nil {
		return nil, fmt.Errorf("pi: building the image: %w", err)
	}
	img := &Image{Variant: v, Dir: out, Card: filepath.Join(out, "pi.img.zst"), Bundle: filepath.Join(out, "pi.pcupdate")}
	if img.Digest, err = digestFile(img.Card); err != nil {
		return nil, err
	}
	if b.images == nil {
		b.images = map[Variant]*Image{}
	}
	b.images[v] = img
	return img, nil
}

func (b *Builder) cacheDir() string { return filepath.Join(b.Repository, "build", "cache") }

// programs are compiled once for all images: linking them takes 6 s of a core.
func (b *Builder) programs(ctx context.Context) (err error) {
	if b.bin == "" {
		b.bin, err = imagespi.CompilePrograms(ctx, b.dir("programs"), progress{b})
	}
	return err
}

func digestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("pi: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("pi: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// progress tells the stages of an image build.
type progress struct{ b *Builder }

func (p progress) Stage(name, detail string) { p.b.say("%s %s", name, detail) }
func (p progress) Step(int64, int64)         {}
func (p progress) Done(bool, time.Duration)  {}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}
