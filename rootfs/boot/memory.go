package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/internal/sealed"
)

// Reasons of this file.
const (
	ReasonMemory      Reason = "memory-short" // the image does not fit into RAM
	ReasonMemoryImage Reason = "memory-image" // no file in RAM could be made
)

// Image is a file in RAM that is filled through a mapping and then sealed: from
// then on no program, root included, can change a byte of it through any descriptor.
type Image struct {
	File  *os.File
	Bytes []byte // nil once sealed

	restore func() // puts the huge page setting back
}

// NewImage makes an empty image of size bytes.
func NewImage(name string, size int64) (*Image, error) {
	if size <= 0 || int64(int(size)) != size {
		return nil, Failf(ReasonMemoryImage, "image of %d bytes", size)
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // MFD_NOEXEC_SEAL came with Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, Failf(ReasonMemoryImage, "memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, Failf(ReasonMemoryImage, "grow to %d bytes: %w", size, err)
	}
	// Before the mapping: the kernel aligns it for huge pages only if they are allowed by then.
	restore := hugeShmem()
	b, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		restore()
		f.Close()
		return nil, Failf(ReasonMemoryImage, "map %d bytes: %w", size, err)
	}
	m := &Image{File: f, Bytes: b, restore: restore}
	unix.Madvise(b, unix.MADV_HUGEPAGE) // fewer faults where the kernel allows it; nothing depends on it
	return m, nil
}

// Seal unmaps the image and makes it unchangeable for ever.
func (m *Image) Seal() error {
	if err := m.unmap(); err != nil {
		return Failf(ReasonMemoryImage, "unmap: %w", err)
	}
	if err := sealed.Seal(m.File); err != nil {
		return Failf(ReasonMemoryImage, "%w", err)
	}
	return nil
}

// Close lets go of the image. What holds it besides (a loop device) keeps it.
func (m *Image) Close() error {
	return errors.Join(m.unmap(), m.File.Close())
}

func (m *Image) unmap() error {
	if m.Bytes == nil {
		return nil
	}
	m.restore()
	b := m.Bytes
	m.Bytes = nil
	return unix.Munmap(b)
}

// hugeShmem lets files in RAM use huge pages where the kernel offers it, and
// returns what puts the setting back.
func hugeShmem() (restore func()) {
	const knob = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
	was, err := os.ReadFile(knob)
	if err != nil || os.WriteFile(knob, []byte("advise"), 0) != nil {
		return func() {}
	}
	return func() { os.WriteFile(knob, []byte(chosen(string(was))), 0) } // it was set once, it can be set again
}

// chosen picks the word in brackets of a sysfs choice ("always [never] deny").
func chosen(s string) string {
	_, s, _ = strings.Cut(s, "[")
	s, _, _ = strings.Cut(s, "]")
	return s
}

// AvailableMemory is the kernel's estimate of memory that can be had without
// swapping, in bytes (MemAvailable of /proc/meminfo).
func AvailableMemory() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return parseAvailable(f)
}

func parseAvailable(r io.Reader) (int64, error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		kb, ok := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		n, err := strconv.ParseInt(kb, 10, 40)
		if !ok || err != nil || n < 0 {
			return 0, fmt.Errorf("cannot read %q in meminfo", s.Text())
		}
		return n << 10, nil
	}
	return 0, fmt.Errorf("no MemAvailable in meminfo")
}
