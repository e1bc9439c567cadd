// Package expect judges what the PC's probes answer: one file an op, each the
// twin of a file in agent/probe. What the signed image says is compared with
// first; only what an image cannot know (hardware, kernel text as patched at
// boot) is compared with a reference that was enrolled. attestd is the only
// caller.
package expect

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"portcullis/attestserver/expect/rootimage"
	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
	"portcullis/images/modlist"
)

// MaskPath is where the kernel text mask lies in the root image.
const MaskPath = "/usr/lib/portcullis/ktext.mask"

// Limits of the two files that are read whole.
const (
	maxMaskFile   = 8 << 20
	maxModuleList = 1 << 20
)

// image is the signed image, open: what all expectations share.
type image struct {
	*protocol.Image
	root    *os.File
	files   *rootimage.FS
	modules modlist.List
	kernel  kernel
	users   atomic.Int32
}

// kernel is what the mask says of the signed kernel.
type kernel struct {
	release  string
	notes    string // hex
	base     uint64
	size     uint64
	maskSum  string   // hex
	maskSize int      // bytes left out
	without  []string // options of its configuration that it has not (ktextmask.Mask)
}

// Options are what the configuration says of the probes.
type Options struct {
	Noise      int64    // bytes of noise in the PC's memory; 0 asks for none
	Containers []string // approved images: SHA-256 of their configurations, hex
}

// All opens the image and returns every expectation, with nothing configured.
func All(img *protocol.Image) ([]protocol.Expectation, error) { return Options{}.All(img) }

// All opens the image and returns every expectation. Closing all of them
// closes the image.
func (o Options) All(img *protocol.Image) ([]protocol.Expectation, error) {
	im, err := openImage(img)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.Dir, err)
	}
	all := []protocol.Expectation{
		&Hw{user{im}}, &Boot{user{im}}, &Block{user{im}}, &Procs{user: user{im}, tasks: tasks{approved: o.Containers}}, &Pmem{user{im}},
		&Modules{user: user{im}, text: &moduleFiles{image: im}}, &Net{user{im}}, &Ktext{user{im}}, &Tpm{user{im}}, &Tsm{user{im}},
		&Krodata{user{im}}, &Trace{user{im}}, &Uevent{user{im}},
		&Files{user: user{im}}, &Time{user: user{im}, now: time.Now}, &Container{user: user{im}, approved: o.Containers},
		&Ima{user: user{im}, tasks: tasks{approved: o.Containers}, running: running},
	}
	if o.Noise > 0 {
		all = append(all, &Noise{user: user{im}, size: o.Noise})
	}
	im.users.Store(int32(len(all)))
	return all, nil
}

func openImage(img *protocol.Image) (*image, error) {
	root, err := os.Open(filepath.Join(img.Dir, "root.img"))
	if err != nil {
		return nil, err
	}
	im := &image{Image: img, root: root}
	if err := im.load(); err != nil {
		root.Close()
		return nil, err
	}
	return im, nil
}

func (im *image) load() (err error) {
	if im.files, err = rootimage.Open(im.root); err != nil {
		return err
	}
	list, err := im.files.ReadFile(modlist.Path, maxModuleList)
	if err != nil {
		return err
	}
	if im.modules, err = modlist.Parse(list); err != nil {
		return err
	}
	mask, err := im.mask()
	if err != nil {
		return err
	}
	im.kernel = kernel{release: mask.Release, notes: hex.EncodeToString(mask.Notes[:]), base: mask.TextBase,
		size: mask.TextSize, maskSum: im.Manifest.Mask.SHA256, maskSize: im.Manifest.Mask.Bytes, without: mask.Without}
	return nil
}

// mask reads the kernel text mask. It is large and not kept.
func (im *image) mask() (*ktextmask.Mask, error) {
	file, err := im.files.ReadFile(MaskPath, maxMaskFile)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(file)
	if hex.EncodeToString(sum[:]) != im.Manifest.Mask.SHA256 {
		return nil, fmt.Errorf("%s is not the one that the manifest names", MaskPath)
	}
	return ktextmask.Decode(file)
}

// user is one expectation's share of the image.
type user struct{ *image }

// Close gives the share back.
func (u user) Close() error {
	if u.users.Add(-1) == 0 {
		return u.root.Close()
	}
	return nil
}

// judge collects the findings of one answer.
type judge struct {
	op   string
	list []protocol.Finding
}

// maxFindings bounds the findings of one answer; the last one stands for the rest, in the
// class of the worst of them: many notes are no reason to distrust, and hide none.
const maxFindings = 32

func (j *judge) add(class protocol.Class, reason, format string, args ...any) {
	switch {
	case len(j.list) < maxFindings:
		j.list = append(j.list, protocol.Finding{Probe: j.op, Reason: reason, Class: class, Detail: plain(fmt.Sprintf(format, args...))})
	default:
		class = max(class, j.list[maxFindings-1].Class)
		j.list[maxFindings-1] = protocol.Finding{Probe: j.op, Reason: protocol.FindingsMore, Class: class, Detail: "more findings than are listed"}
	}
}

// plain makes a detail fit for a log and a terminal: names in it come from a
// machine that may be hostile.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), protocol.MaxReasonBytes)], "")
}

func (j *judge) fatal(reason, format string, args ...any) {
	j.add(protocol.Fatal, reason, format, args...)
}

// read checks the keyed digest over an answer's data and decodes it.
func (j *judge) read(in protocol.JudgeInput, data interface{ Check() error }) bool {
	return j.readUpTo(in, data, protocol.MaxData)
}

func (j *judge) readUpTo(in protocol.JudgeInput, data interface{ Check() error }, max int) bool {
	if !protocol.SameDigest(in.Output.Digest, in.Key.Digest(j.op, in.Params, in.Output.Data)) {
		j.fatal(ReasonDigest, "the digest is not of this answer to this question")
		return false
	}
	return j.decode(in, data, max)
}

func (j *judge) decode(in protocol.JudgeInput, data interface{ Check() error }, max int) bool {
	if err := protocol.DecodeOp(in.Output.Data, max, data); err != nil {
		j.fatal(ReasonMalformed, "%v", err)
		return false
	}
	return true
}

// unjudged says that the fault is on this side: a file of the image could not
// be read. The PC is not trusted on an answer that nobody could judge.
func (j *judge) unjudged(err error) {
	j.fatal(protocol.ProbeUnjudged, "%v", err)
}

// inImage looks a path up. found is false where the image has no such regular file.
func (im *image) inImage(path string) (f *rootimage.File, found bool, err error) {
	f, err = im.files.Lookup(path)
	switch {
	case err == nil:
		return f, true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrInvalid), errors.Is(err, rootimage.ErrNotRegular):
		return nil, false, nil
	}
	return nil, false, err
}

// readPage reads a page of a file into b as it looks in memory: zeros after the end.
func readPage(f io.ReaderAt, offset uint64, b []byte) error {
	n, err := f.ReadAt(b, int64(offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(b[n:])
	return nil
}

func draw(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("random source: %w", err)
	}
	return b, nil
}
