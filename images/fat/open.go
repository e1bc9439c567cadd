package fat

import (
	"errors"
	"io"
)

// FS is an open file system. It holds no copy of the volume: what r gives changes what is read.
type FS struct{}

// Open reads the boot sector of a FAT16 or FAT32 file system of size bytes and checks that its fields agree.
func Open(r io.ReaderAt, size int64) (*FS, error) { return nil, errors.New("fat: not read yet") }

// ReadFile returns a file's content. Larger ones than max bytes are refused with ReasonSize.
func (f *FS) ReadFile(path string, max int64) ([]byte, error) {
	return nil, errors.New("fat: not read yet")
}

// List returns every file and directory, sorted by path.
func (f *FS) List() ([]Entry, error) { return nil, errors.New("fat: not read yet") }

// Extent returns where a contiguous file lies on the volume, in bytes. Others
// are refused with ReasonFragmented; an empty file has none.
func (f *FS) Extent(path string) (offset, size int64, err error) {
	return 0, 0, errors.New("fat: not read yet")
}

// Label returns the volume's label without its padding; it may be empty.
func (f *FS) Label() string { return "" }

// ID returns the volume serial number.
func (f *FS) ID() uint32 { return 0 }
