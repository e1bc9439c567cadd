package guard

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"portcullis/verifier/verity"
)

// The contents of a layer's files are compared in one of two ways. Where the kernel and
// the file system of the engine's store have fs-verity, each file is given it after the load
// (seal.go), or when it is looked at before that: from then on nobody writes to it, root neither, and the kernel
// holds each page against the file's digest when it is read from the disk. What is left to
// ask before a start is that digest, which no file is read for. Elsewhere, and where
// that fails, every byte is read and hashed as if there were no such thing; or recognized, at a
// start, as what was hashed for an earlier one (tags.go).

// Forms of the sums in a list of files.
const (
	formSHA256 = ""          // of lists before verity was known: SHA-256 of the content
	formVerity = "fs-verity" // package verity
)

// comparison of unpacked files with what is listed.
type comparison struct {
	by    shift
	files verity.Files
	turns *turns
	form  string // of the sums, one of the above
	// read makes the kernel look at files with verity too, all of each: a disk that was
	// changed below the file system shows in no other way. And it makes what has none be hashed,
	// whatever tags there are.
	read bool
	dev  uint64 // the file system on which every name has to lie

	tags  *tags
	image string // the configuration of the image whose tags are asked for and kept; "": nobody's

	todo []content
	// Wide files are put off while there is room in left, bytes.
	left   int64
	putOff []content

	mu   sync.Mutex // of what follows
	said layersHeld

	slow      []string // files that were hashed, for ahead
	slowBytes int64
}

// turns are taken by who switches verity on for a file, by the file's number: the kernel lets one
// do it and tells the others that it is busy.
type turns [64]sync.Mutex

// content is a file whose bytes are to be compared.
type content struct {
	dir, name string // of the layer, and in it
	size      int64
	sum       verity.Sum
	form      string
	ino       uint64
}

func (x *content) path() string { return filepath.Join(x.dir, x.name) }

// todoMost is for how many files of a layer contents are put off, to be compared in the
// order of the disk: 200,000 of them at once took more memory than all else.
const todoMost = 8192

// layersHeld tells how the contents of files were compared.
type layersHeld struct {
	sealed, hashed int   // files; hashed are those without verity, of which all was read
	why            error // of the first hashed file: why it has no verity
}

// Words of the status for how files are held.
const (
	LayersSealed = "fs-verity" // the kernel refuses writers and checks each page
	LayersHashed = "re-hashed" // some files were read and hashed
)

func (h layersHeld) String() string {
	switch {
	case h.hashed > 0:
		return LayersHashed
	case h.sealed > 0:
		return LayersSealed
	}
	return ""
}

func (g *Guard) comparer(read bool) *comparison {
	return &comparison{by: g.shift(), files: g.opt.Verity, turns: &g.turns, form: formVerity, read: read, tags: g.tags}
}

// onDisk takes the file system that dir lies on for that of all names.
func (c *comparison) onDisk(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return refuse(ReasonImageStore, "%s: %v", dir, err)
	}
	c.dev = st.Dev
	return nil
}

// putOffBytes is how much of an image may be compared while the engine makes a container of it: that
// has to be done well before the engine's answer is given up (package engine), from a slow card, too.
const putOffBytes = 512 << 20

// wideFile is the size from which on one file is hashed by all workers, bytes.
const wideFile = 4 << 20

// contents compares what is left to do, by all processors, in the order in which the files
// lie on the disk as far as their numbers tell.
func (c *comparison) contents(ctx context.Context) error {
	var small, wide []content
	for _, x := range c.todo {
		switch {
		case x.size < wideFile:
			small = append(small, x)
		case x.size <= c.left:
			c.left -= x.size
			c.putOff = append(c.putOff, x)
		default:
			wide = append(wide, x)
		}
	}
	c.todo = c.todo[:0]
	for _, list := range [][]content{small, wide} {
		slices.SortStableFunc(list, func(a, b content) int { return cmp.Compare(a.ino, b.ino) })
	}
	workers := runtime.GOMAXPROCS(0)
	if err := c.each(ctx, small, workers, 1); err != nil {
		return err
	}
	return c.each(ctx, wide, 1, workers)
}

// each compares files, so many at a time and each by so many workers.
func (c *comparison) each(ctx context.Context, todo []content, atATime, workers int) error {
	var next atomic.Int64
	errs := make([]error, max(1, min(atATime, len(todo))))
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for errs[w] == nil {
				i := next.Add(1) - 1
				if i >= int64(len(todo)) {
					return
				}
				if errs[w] = ctx.Err(); errs[w] == nil {
					errs[w] = c.content(todo[i], workers)
				}
				if errs[w] != nil {
					next.Store(int64(len(todo))) // the others end with what they have
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// open opens a file that is to be compared, if it is the one that was looked at.
func (c *comparison) open(x content) (*os.File, error) {
	// What was a file a moment ago may be a pipe, or lead elsewhere.
	f, err := os.OpenFile(x.path(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EAGAIN) {
		// Somebody has a lease on it, as only files can have, and is asked to give it back.
		f, err = c.openLeased(x)
	}
	if err != nil {
		return nil, unreadable(x.name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, unreadable(x.name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != x.ino || st.Size != x.size || st.Dev != c.dev {
		f.Close()
		return nil, refuse(ReasonImageStore, "/%.200q was exchanged", x.name)
	}
	return f, nil
}

// content compares one file.
func (c *comparison) content(x content, workers int) error {
	f, err := c.open(x)
	if err != nil {
		return err
	}
	defer f.Close()
	var sum verity.Sum
	var sealed bool
	why := errors.New("its list is of an older form")
	if x.form == formVerity {
		sum, why = c.seal(f, x.ino)
		sealed = why == nil
	}
	switch {
	case sealed && c.read:
		_, err = io.Copy(io.Discard, io.NewSectionReader(f, 0, x.size))
	case !sealed && x.form == formVerity:
		sum, err = c.digest(f, &x, workers)
	case !sealed:
		h := sha256.New()
		_, err = io.Copy(h, f)
		sum = verity.Sum(h.Sum(nil))
	}
	if err != nil {
		return unreadable(x.name, err)
	}
	if sum != x.sum {
		return refuse(ReasonImageStore, "/%.200q is not the image's", x.name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if sealed {
		c.said.sealed++
		return nil
	}
	if c.said.hashed++; c.said.why == nil {
		c.said.why = why
	}
	c.hashedFile(&x)
	return nil
}

// openLeased waits until a lease is given back, or the kernel has taken it away
// (/proc/sys/fs/lease-break-time, 45 s). Only for that: the name may be a pipe's by now, whose
// other end nobody opens; so what waits is what was looked at.
func (c *comparison) openLeased(x content) (*os.File, error) {
	fd, err := unix.Open(x.path(), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != x.ino || st.Dev != c.dev {
		return nil, fmt.Errorf("%w: exchanged while it was leased", unix.ESTALE)
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY, 0)
}

// seal asks for a file's digest, and switches verity on where the file has none. What
// it was when nobody could write to it any more is what is compared. Where somebody else here is
// at it, that is waited for: the kernel has no more to do than before.
func (c *comparison) seal(f *os.File, ino uint64) (verity.Sum, error) {
	sum, err := c.files.Measure(f)
	if !errors.Is(err, verity.ErrNone) {
		return sum, err
	}
	turn := &c.turns[ino%uint64(len(c.turns))]
	turn.Lock()
	defer turn.Unlock()
	if sum, err := c.files.Measure(f); !errors.Is(err, verity.ErrNone) {
		return sum, err
	}
	if err := c.files.Enable(f); err != nil {
		return verity.Sum{}, err
	}
	return c.files.Measure(f)
}

// unreadable is a refusal, unless it is this process that has no room: with verity
// the kernel gives an error for what is not the image's.
func unreadable(name string, err error) error {
	for _, ours := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR} {
		if errors.Is(err, ours) {
			return err
		}
	}
	return refuse(ReasonImageStore, "/%.200q cannot be read: %v", name, err)
}
