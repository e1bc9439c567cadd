package server

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/images/manifest"
)

// Images opens the PC's image that pxed serves, under the same trust.
type Images struct {
	dir   string
	trust manifest.Trust
	floor uint64
	build func(*protocol.Image) ([]protocol.Expectation, error)

	mu      sync.Mutex
	current *openImage // the one in the directory when it was looked at last
	known   []*openImage
	held    map[*Server]*openImage // by the PCs whose image it is
}

// openImage is an image with what is expected of a PC that runs it.
type openImage struct {
	*protocol.Image
	expectations []protocol.Expectation
	used         time.Time // when it was asked for last
}

// classified tells whether answers name a CPU class.
func (i *openImage) classified() bool {
	return slices.ContainsFunc(i.expectations, func(e protocol.Expectation) bool {
		_, ok := e.(protocol.Classifier)
		return ok
	})
}

// NewImages reads images in dir signed by threshold of keys (base64 Ed25519),
// of at least version floor; build makes the Expectations of an image.
func NewImages(dir string, keys []string, threshold int, floor uint64, build func(*protocol.Image) ([]protocol.Expectation, error)) (*Images, error) {
	trust := manifest.Trust{Threshold: threshold}
	for i, k := range keys {
		b, err := base64.StdEncoding.DecodeString(k)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("release key %d is not a base64 Ed25519 public key", i)
		}
		trust.ReleaseKeys = append(trust.ReleaseKeys, b)
	}
	return &Images{dir: dir, trust: trust, floor: floor, build: build, held: make(map[*Server]*openImage)}, nil
}

// open returns the image whose manifest payload has the given digest: one that
// is open, or the one in the directory now.
func (i *Images) open(digest [32]byte, now time.Time) (*openImage, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	image := i.find(digest)
	if image == nil {
		if err := i.load(now); err != nil {
			return nil, err
		}
		image = i.current
	}
	if image.Digest != digest {
		return nil, errors.New("the claim names another manifest than the one that is served")
	}
	if now.After(image.Manifest.NotAfter) {
		return nil, fmt.Errorf("image %s version %d is past its date", image.Manifest.Image, image.Manifest.Version)
	}
	image.used = now
	return image, nil
}

// prepare opens the image in the directory, so that it is ready when the PC
// that boots it claims.
func (i *Images) prepare(now time.Time) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.load(now)
}

func (i *Images) find(digest [32]byte) *openImage {
	for _, k := range i.known {
		if k.Digest == digest {
			return k
		}
	}
	return nil
}

// load is called with mu held.
func (i *Images) load(now time.Time) error {
	envelope, err := readEnvelope(filepath.Join(i.dir, manifest.Envelope))
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	m, err := manifest.Open(envelope, i.trust, now, i.floor)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	if k := i.find(m.Digest); k != nil {
		i.current = k
		return nil
	}
	if err := checkRoot(i.dir, &m.Manifest); err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	image := &protocol.Image{Dir: i.dir, Manifest: &m.Manifest, Digest: m.Digest}
	expectations, err := i.build(image)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	i.current = &openImage{Image: image, expectations: expectations, used: now}
	i.known = append(i.known, i.current)
	return nil
}

// keepImage is how long an image stays open that nobody uses: a claim may be on
// its way to the core.
const keepImage = time.Minute

// prune closes what is neither current, nor held by a PC, nor was asked for lately.
// The core of a PC calls it while nothing of that PC is judged, with what it holds.
// Where it returns false it has done nothing.
func (i *Images) prune(by *Server, inUse *openImage, now time.Time) bool {
	if !i.mu.TryLock() {
		return false // an image is being opened, which takes a while: next time
	}
	defer i.mu.Unlock()
	i.held[by] = inUse
	i.known = slices.DeleteFunc(i.known, func(k *openImage) bool {
		if k == i.current || i.holds(k) || now.Sub(k.used) < keepImage {
			return false
		}
		for _, e := range k.expectations {
			if c, ok := e.(io.Closer); ok {
				c.Close()
			}
		}
		return true
	})
	return true
}

// holds tells whether a PC holds the image. Call with mu held.
func (i *Images) holds(image *openImage) bool {
	for _, k := range i.held {
		if k == image {
			return true
		}
	}
	return false
}

// checkRoot compares the root image, which answers are held against, with the
// signed manifest. It reads all of it: once per image and start of attestd.
func checkRoot(dir string, m *manifest.Manifest) error {
	a, ok := m.Artefact(manifest.Root)
	if !ok {
		return fmt.Errorf("the manifest names no %s", manifest.Root)
	}
	f, err := os.Open(filepath.Join(dir, manifest.Root))
	if err != nil {
		return err
	}
	defer f.Close()
	return manifest.CheckArtefact(a, f)
}

func readEnvelope(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, manifest.MaxEnvelope+1))
}
