// Package sealed holds bytes in anonymous memory that nobody can change any
// more, not even this process: a memfd with the seals WRITE, GROW, SHRINK and
// SEAL (fcntl(2)). What is verified while it is copied in stays verified.
//
// The pages belong to the memfd and not to the process: they are shared memory
// in the accounts of its cgroup, outside of its RSS until they are read by mmap.
package sealed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Seals is the set that every File carries.
const Seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// File is sealed memory. ReadAt may be called concurrently, also with Close:
// it then fails with os.ErrClosed.
type File struct {
	file *os.File
	size int64
}

// Copy reads exactly size bytes from r into sealed memory named name (shown in
// /proc/PID/fd only). check is called once the seals hold, with
// a reader over the memory; its error ends it, and nothing is kept. What check
// has seen is what every later ReadAt sees.
func Copy(name string, r io.Reader, size int64, check func(io.Reader) error) (*File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("seal %s: memfd: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := fill(f, r, size, check); err != nil {
		return nil, errors.Join(fmt.Errorf("seal %s: %w", name, err), f.Close())
	}
	return &File{file: f, size: size}, nil
}

func fill(f *os.File, r io.Reader, size int64, check func(io.Reader) error) error {
	n, err := io.Copy(f, io.LimitReader(r, size))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%d bytes were there, %d are expected: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err := Seal(f); err != nil {
		return err
	}
	got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || got&Seals != Seals {
		return fmt.Errorf("seals are %#x, not %#x: %v", got, Seals, err)
	}
	// After the seals: what is checked here can never differ from what is read later.
	return check(io.NewSectionReader(f, 0, size))
}

// sealTries and sealPause bound how long Seal waits for the kernel, 2 s together.
const (
	sealTries = 40
	sealPause = 50 * time.Millisecond
)

// Seal puts Seals on a memfd. The kernel refuses with EBUSY while anybody holds a
// reference to one of its pages (mm/memfd.c, memfd_wait_for_pins): a writable mapping,
// which is a fault of the caller and stays, or the kernel itself for a moment, when it
// moves pages in a full memory. So it is asked again.
func Seal(f *os.File) error {
	var err error
	for range sealTries {
		if _, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, Seals); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(sealPause)
	}
	if err != nil {
		return fmt.Errorf("add seals: %w", err)
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.file.ReadAt(p, off) }

// Size returns the size in bytes.
func (f *File) Size() int64 { return f.size }

// Close gives the memory back.
func (f *File) Close() error { return f.file.Close() }
