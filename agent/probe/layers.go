package probe

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// layers knows the programs of the container images that the runtime holds. An
// image is named by the SHA-256 of its configuration, which lists the SHA-256 of
// each layer as a tar stream; the runtime keeps the layers unpacked. Each layer
// is put together again from its files and from the headers that the runtime has
// kept, so that only an image whose files are all what its name says is known:
// who changes a file of a layer on the disk makes the image unknown.
//
// Reading goes on in the background for as long as it takes; it is one for all probes.
type layers struct {
	host Host

	mu      sync.Mutex
	known   map[string]map[[32]byte]bool // programs of each image, by the image's SHA-256 in hex
	broken  map[string]time.Time         // images that are not what their name says, and when that was seen
	began   time.Time                    // when the reader that runs began; zero where none runs
	done    chan struct{}                // closed when it ends
	digests map[statKey][32]byte         // of files that were read
}

// statKey is a file as it was read: whoever writes to it changes the time.
type statKey struct {
	dev   string
	inode uint64
	ctime int64
	size  int64
}

// Limits of what is read of the runtime's records.
const (
	maxImages      = 256
	maxImageLayers = 128
	maxKnownFiles  = 1 << 18
	maxDigests     = 1 << 14
	maxSplitLine   = 4 << 20
	// layersWait is how long an answer waits for the reader.
	layersWait = 2 * time.Second
	// brokenAgain is when an image that could not be read is looked at again: it may
	// have been on its way in.
	brokenAgain = 30 * time.Second
)

func newLayers(h Host) *layers {
	return &layers{host: h, known: map[string]map[[32]byte]bool{}, broken: map[string]time.Time{}, digests: map[statKey][32]byte{}}
}

// refresh has new images read and waits a little for it. reading is since when
// the reader has been at it, 0 where all images have been read.
func (l *layers) refresh(ctx context.Context) (reading time.Duration) {
	l.mu.Lock()
	if l.done == nil {
		if fresh := l.unread(); len(fresh) > 0 {
			l.began, l.done = time.Now(), make(chan struct{})
			go l.read(fresh)
		}
	}
	done := l.done
	l.mu.Unlock()
	if done == nil {
		return 0
	}
	wait := time.NewTimer(layersWait)
	defer wait.Stop()
	select {
	case <-done:
	case <-wait.C:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		return 0
	}
	return time.Since(l.began)
}

// unread lists the runtime's images that are not known. The caller holds the lock.
func (l *layers) unread() (out []string) {
	entries, err := os.ReadDir(l.host.docker("image/overlay2/imagedb/content/sha256"))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		at, bad := l.broken[e.Name()]
		if l.known[e.Name()] == nil && isDigest(e.Name()) && (!bad || time.Since(at) > brokenAgain) && len(out) < maxImages {
			out = append(out, e.Name())
		}
	}
	return out
}

func (l *layers) read(images []string) {
	for _, name := range images {
		files, err := l.image(name)
		l.mu.Lock()
		switch {
		case err != nil:
			l.broken[name] = time.Now()
		case len(l.known) < maxImages:
			l.known[name] = files
			delete(l.broken, name)
		}
		l.mu.Unlock()
	}
	l.mu.Lock()
	close(l.done)
	l.done, l.began = nil, time.Time{}
	l.mu.Unlock()
}

// errImage is an image that is not what its name says.
var errImage = errors.New("container image: not what its name says")

// image reads one image: the programs of all of its layers.
func (l *layers) image(name string) (map[[32]byte]bool, error) {
	b, err := read(l.host.docker("image/overlay2/imagedb/content/sha256", name))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != name {
		return nil, errImage
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, fmt.Errorf("container image: %w", err)
	}
	if len(config.RootFS.DiffIDs) > maxImageLayers {
		return nil, fmt.Errorf("container image: more than %d layers", maxImageLayers)
	}
	files := map[[32]byte]bool{}
	chain := ""
	for _, diff := range config.RootFS.DiffIDs {
		// The name of a layer on top of others: image-spec, config.md, "Layer ChainID".
		if chain == "" {
			chain = diff
		} else {
			sum := sha256.Sum256([]byte(chain + " " + diff))
			chain = "sha256:" + hex.EncodeToString(sum[:])
		}
		if err := l.layer(strings.TrimPrefix(chain, "sha256:"), diff, files); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// layer puts one layer together again and collects the programs in it.
func (l *layers) layer(chain, diff string, files map[[32]byte]bool) error {
	if !isDigest(chain) {
		return errImage
	}
	cache := optional(l.host.docker("image/overlay2/layerdb/sha256", chain, "cache-id"))
	if !isLayer(cache) {
		return errImage
	}
	root, err := os.OpenRoot(l.host.docker("overlay2", cache, "diff"))
	if err != nil {
		return err
	}
	defer root.Close()
	split, err := os.Open(l.host.docker("image/overlay2/layerdb/sha256", chain, "tar-split.json.gz"))
	if err != nil {
		return err
	}
	defer split.Close()
	plain, err := gzip.NewReader(bufio.NewReader(split))
	if err != nil {
		return fmt.Errorf("container layer: %w", err)
	}
	stream := sha256.New()
	lines := bufio.NewScanner(plain)
	lines.Buffer(nil, maxSplitLine)
	for lines.Scan() {
		if err := splitEntry(root, lines.Bytes(), stream, files); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("container layer: %w", err)
	}
	if "sha256:"+hex.EncodeToString(stream.Sum(nil)) != diff {
		return errImage
	}
	return nil
}

// splitEntry adds one line of the runtime's record of a layer to the stream:
// bytes as they stood in the archive (type 2), or a file whose content lies in
// the layer's directory (type 1).
func splitEntry(root *os.Root, line []byte, stream hash.Hash, files map[[32]byte]bool) error {
	var e struct {
		Type    int    `json:"type"`
		Name    string `json:"name"`
		NameRaw []byte `json:"name_raw"`
		Size    int64  `json:"size"`
		Payload []byte `json:"payload"`
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("container layer: %w", err)
	}
	switch {
	case e.Type == 2:
		stream.Write(e.Payload)
		return nil
	case e.Type != 1:
		return errImage
	case e.Size <= 0:
		return nil
	}
	if len(e.NameRaw) > 0 {
		e.Name = string(e.NameRaw)
	}
	f, err := root.OpenFile(strings.TrimLeft(e.Name, "/"), os.O_RDONLY|nonblock, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() != e.Size {
		return errImage
	}
	in := bufio.NewReader(f)
	own := io.Discard
	sum := sha256.New()
	if program(in) {
		own = sum
	}
	if n, err := io.Copy(io.MultiWriter(stream, own), io.LimitReader(in, e.Size)); err != nil || n != e.Size {
		return errors.Join(errImage, err)
	}
	if own != io.Discard && len(files) < maxKnownFiles {
		files[[32]byte(sum.Sum(nil))] = true
	}
	return nil
}

// program tells whether a file is one that a kernel executes or maps as code.
func program(in *bufio.Reader) bool {
	head, _ := in.Peek(4)
	return string(head) == "\x7fELF" || strings.HasPrefix(string(head), "#!")
}

// images lists the images that have a program of this digest, sorted, at most max.
func (l *layers) images(digest [32]byte, max int) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, files := range l.known {
		if files[digest] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), max)]
}

// holds tells whether an image has a program of this digest.
func (l *layers) holds(image string, digest [32]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[image][digest]
}

// digest reads a file that a link below /proc leads to. A file that was read
// before and not written to since is not read again.
func (l *layers) digest(ctx context.Context, link string, k statKey) ([32]byte, error) {
	l.mu.Lock()
	d, ok := l.digests[k]
	l.mu.Unlock()
	if ok {
		return d, nil
	}
	f, err := l.host.Content(link)
	if err != nil {
		return d, err
	}
	defer f.Close()
	h := sha256.New()
	for {
		if err := alive(ctx); err != nil {
			return d, err
		}
		n, err := io.CopyN(h, f, 1<<20)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return d, err
		}
		if n == 0 {
			break
		}
	}
	d = [32]byte(h.Sum(nil))
	// A file without a name can be written to through a mapping, which leaves no time.
	if k.dev != "" {
		l.mu.Lock()
		if len(l.digests) >= maxDigests {
			clear(l.digests)
		}
		l.digests[k] = d
		l.mu.Unlock()
	}
	return d, nil
}
