package expect

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"regexp"
	"slices"
	"sync"
	"time"

	"portcullis/attestserver/protocol"
)

// What the container runtime starts that is no file of the image, and what must be
// in it: a copy of runc, made so that a container cannot write to the program that
// starts it, and tiny programs that Docker carries inside of itself and runs at its
// start, to learn for which processors it can.
const (
	runcPath   = "/usr/sbin/runc"
	dockerPath = "/usr/sbin/dockerd"
	initPath   = "/usr/bin/tini-static"
)

// dockerCheck is the whole path of such a tiny program.
var dockerCheck = regexp.MustCompile(`^` + protocol.DockerCheck + `[0-9]{1,20}/check$`)

// readingLimit is how long an agent may read images of containers: a big one on a slow
// disk takes minutes.
const readingLimit = 10 * time.Minute

// tasks judges programs of containers: those of approved images are the container's
// own, everything else is unknown code.
type tasks struct {
	approved []string // SHA-256 of image configurations, hex

	mu      sync.Mutex
	carried map[string]bool   // SHA-256 of programs that Docker carries, hex; nil until they are wanted
	sums    map[string]string // SHA-256 of files of the image that were wanted, hex
}

// sum is the SHA-256 of a file of the machine's image, hex; found is false where it
// has none of that path.
func (t *tasks) sum(im *image, path string) (sum string, found bool, err error) {
	t.mu.Lock()
	sum = t.sums[path]
	t.mu.Unlock()
	if sum != "" {
		return sum, true, nil
	}
	if _, found, err := im.inImage(path); err != nil || !found {
		return "", false, err
	}
	d, err := im.digest(path)
	if err != nil {
		return "", false, err
	}
	sum = hex.EncodeToString(d)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sums == nil {
		t.sums = map[string]string{}
	}
	t.sums[path] = sum
	return sum, true, nil
}

// isImages tells whether content is that of a file of the machine's image. Until it
// executes the container's program, runc runs with the machine's libraries behind
// the container's walls.
func (t *tasks) isImages(im *image, path, content string) (bool, error) {
	sum, found, err := t.sum(im, path)
	return found && sum == content, err
}

// carries tells whether dockerd of the image carries a program of this SHA-256.
func (t *tasks) carries(im *image, sum string) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.carried == nil {
		var err error
		if t.carried, err = im.carriedBy(dockerPath); err != nil {
			return false, err
		}
	}
	return t.carried[sum], nil
}

// ofTask tells whether a file is a program of an approved image behind its
// container's walls.
func (t *tasks) ofTask(f *protocol.File) bool {
	return f.Container != "" && f.Image != "" && slices.Contains(t.approved, f.Image)
}

// ofRuntime tells whether path, with this SHA-256, is a program that the runtime makes itself.
func (t *tasks) ofRuntime(im *image, path, sum string) (bool, error) {
	switch {
	case path == protocol.RuncClone, path == protocol.RuncClone[1:]: // IMA has it without the slash
		return t.isImages(im, runcPath, sum)
	case path == protocol.DockerInit:
		return t.isImages(im, initPath, sum)
	case dockerCheck.MatchString(path):
		return t.carries(im, sum)
	}
	return false, nil
}

// gzipHead begins a program that was packed by Go's or GNU's gzip without name and time.
var gzipHead = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0}

// Limits of programs that another one carries.
const (
	maxCarried  = 64 << 10  // bytes of one, packed
	maxUnpacked = 256 << 10 // and unpacked: one of Docker's is made of two pages 64 KiB apart
	carryWindow = 1 << 20
)

// carriedBy lists the SHA-256 of programs that lie packed inside of a program of the image.
func (im *image) carriedBy(path string) (map[string]bool, error) {
	out := map[string]bool{}
	_, found, err := im.inImage(path)
	if err != nil || !found {
		return out, err
	}
	r, err := im.files.Reader(path)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 0, carryWindow+maxCarried)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return nil, err
		}
		for at := 0; ; at++ {
			i := bytes.Index(buf[at:], gzipHead)
			if i < 0 {
				break
			}
			at += i
			if sum, ok := packedProgram(buf[at:min(at+maxCarried, len(buf))]); ok {
				out[sum] = true
			}
		}
		if last {
			return out, nil
		}
		// What begins near the end is looked at again with what follows.
		buf = buf[:copy(buf, buf[len(buf)-maxCarried:])]
	}
}

// packedProgram is the SHA-256 of the ELF file that b begins with, packed.
func packedProgram(b []byte) (string, bool) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return "", false
	}
	z.Multistream(false)
	plain, err := io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	if err != nil || len(plain) > maxUnpacked || !bytes.HasPrefix(plain, []byte("\x7fELF")) {
		return "", false
	}
	sum := sha256.Sum256(plain)
	return hex.EncodeToString(sum[:]), true
}
