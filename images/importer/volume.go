package importer

import (
	"errors"
	"io"
	"os"

	"portcullis/images/fat"
	"portcullis/rootfs/boot"
)

// Volume is an open stick.
type Volume struct {
	*fat.FS
	Path string
	f    *os.File
}

// OpenVolume opens a block device, or an image of one in a file, read-only.
func OpenVolume(path string) (*Volume, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, refuse(ReasonVolume, "%w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, refuse(ReasonVolume, "%w", errors.Join(err, f.Close()))
	}
	fs, err := fat.Open(f, size)
	if err != nil {
		return nil, refuse(ReasonVolume, "%s: %w", path, errors.Join(err, f.Close()))
	}
	if fs.Label() != Label {
		f.Close()
		return nil, refuse(ReasonVolume, "%s is labelled %q, not %q (mkfs.vfat -n %s)", path, fs.Label(), Label, Label)
	}
	return &Volume{FS: fs, Path: path, f: f}, nil
}

// Close closes it.
func (v *Volume) Close() error { return v.f.Close() }

// FindVolume looks at every disk and partition for the first stick.
func FindVolume() (*Volume, error) {
	disks, err := boot.Disks(boot.SysBlock)
	if err != nil {
		return nil, refuse(ReasonVolume, "%w", err)
	}
	for _, d := range disks {
		paths := []string{d.Path}
		for _, p := range d.Partitions {
			paths = append(paths, p)
		}
		for _, p := range paths {
			if v, err := OpenVolume(p); err == nil {
				return v, nil
			}
		}
	}
	return nil, refuse(ReasonVolume, "no disk here has a FAT file system labelled %s", Label)
}
