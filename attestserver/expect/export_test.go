package expect

import (
	"errors"
	"io"
	"os"
	"time"

	"portcullis/attestserver/expect/rootimage"
	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
)

// InodeOf reads a file's inode number, for tests that play a machine.
func InodeOf(image, path string) (uint32, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fs, err := rootimage.Open(f)
	if err != nil {
		return 0, err
	}
	file, err := fs.Lookup(path)
	if err != nil {
		return 0, err
	}
	return file.Number(), nil
}

// SetRunning sets the clock of the twin of probe.Ima.
func SetRunning(e protocol.Expectation, running func() time.Duration) { e.(*Ima).running = running }

// Disk is the disk of an image that fails while Broken is set.
type Disk struct {
	io.ReaderAt
	Broken bool
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if d.Broken {
		return 0, errors.New("disk: input/output error")
	}
	return d.ReaderAt.ReadAt(p, off)
}

// OnDisk has the twin of probe.Modules read its image from such a disk, with nothing in memory.
func OnDisk(e protocol.Expectation) (*Disk, error) {
	m := e.(*Modules)
	d := &Disk{ReaderAt: m.root}
	files, err := rootimage.Open(d)
	if err != nil {
		return nil, err
	}
	m.image.files, m.text = files, &moduleFiles{image: m.image}
	return d, nil
}

// ReadIndex reads which module files the image has.
func ReadIndex(e protocol.Expectation) error {
	_, err := e.(*Modules).text.exports()
	return err
}

// CopyText is copyText, for an answer with these digests.
func CopyText(w io.WriterAt, kernel io.ReaderAt, size int64, mask *ktextmask.Mask, key protocol.OpKey, macs []byte) ([]int, error) {
	return copyText(w, kernel, size, mask, nil, pieceMACs{key.MACs(), macs})
}

// TakeRodata is Krodata.take for a kernel whose text is at base.
func TakeRodata(w io.WriterAt, kernel io.ReaderAt, size int64, base, text uint64, key protocol.OpKey, d *protocol.KrodataData) ([]protocol.Finding, error) {
	e, j := &Krodata{user{&image{}}}, &judge{}
	e.kernel.base, e.kernel.size = base, text
	err := e.take(j, key, d, w, kernel, size)
	return j.list, err
}

// Taking tells whether a reference is being taken.
func Taking() bool {
	free := taking.TryLock()
	if free {
		taking.Unlock()
	}
	return !free
}
