package server

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	current *openImage
}

// openImage is an image with what is expected of a PC that runs it.
type openImage struct {
	*protocol.Image
	expectations []protocol.Expectation
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
	return &Images{dir: dir, trust: trust, floor: floor, build: build}, nil
}

// open returns the image whose manifest payload has the given digest. It reads
// the directory anew when the image there is not that one.
func (i *Images) open(digest [32]byte, now time.Time) (*openImage, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.current != nil && i.current.Digest == digest {
		if now.After(i.current.Manifest.NotAfter) {
			return nil, fmt.Errorf("image %s version %d is past its date", i.current.Manifest.Image, i.current.Manifest.Version)
		}
		return i.current, nil
	}
	envelope, err := readEnvelope(filepath.Join(i.dir, manifest.Envelope))
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	m, err := manifest.Open(envelope, i.trust, now, i.floor)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	if !bytes.Equal(m.Digest[:], digest[:]) {
		return nil, errors.New("the claim names another manifest than the one that is served")
	}
	image := &protocol.Image{Dir: i.dir, Manifest: &m.Manifest, Digest: m.Digest}
	expectations, err := i.build(image)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	i.current = &openImage{image, expectations}
	return i.current, nil
}

// release closes what the Expectations of an image hold open, unless it is the
// current one. The core calls it when it uses image no more.
func (i *Images) release(image *openImage) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if image == nil || image == i.current {
		return
	}
	for _, e := range image.expectations {
		if c, ok := e.(io.Closer); ok {
			c.Close()
		}
	}
}

func readEnvelope(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, manifest.MaxEnvelope+1))
}
