// Package enginedisk makes the disk of Docker's engine on the Pi: a file of the
// encrypted data volume behind dm-crypt, with a key that is drawn at each boot and
// kept nowhere, and a file system that is made anew each time.
//
// Engines do not look at an unpacked image again (package guard, layers.go). What lies on
// this disk was therefore written since the machine started, by its own engine: who had
// the card meanwhile has nothing that could be changed. verifierd fills it again from the
// images that it keeps.
//
// The command `portcullis engine disk` uses it, once a boot. It needs root.
package enginedisk

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"portcullis/rootfs/boot"
)

// Typed reasons.
const (
	ReasonDisk  = "engine-disk"       // a file, a device or the file system could not be made
	ReasonSpace = "engine-disk-space" // the data volume has no room for it
)

// Error is a disk that was not made.
type Error struct {
	Reason string
	Err    error
}

func (e *Error) Error() string { return e.Reason + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func failf(reason, format string, args ...any) error {
	return &Error{reason, fmt.Errorf(format, args...)}
}

// Name is the device's, for the device-mapper.
const Name = "portcullis-engine"

// Bounds of the disk in bytes. It gets half of the room that the data volume has when
// it is made for the first time, and keeps its size.
const (
	MinSize = 256 << 20
	MaxSize = 16 << 30

	sizeUnit = 1 << 20 // sizes are multiples of it
)

// keySize is that of two AES-256 keys, for XTS.
const keySize = 64

// sectorSize is what is encrypted at a time, bytes.
const sectorSize = 4096

// Options of Open.
type Options struct {
	File string // on the data volume; made where it is missing
	Link string // symbolic link that will lead to the device
	// MakeFS makes the file system on a device; nil: mkfs.ext4.
	MakeFS func(ctx context.Context, device string) error
}

// Disk is what Open made, or found.
type Disk struct {
	Device string `json:"device"` // /dev/dm-N
	Bytes  int64  `json:"bytes"`
	Kept   bool   `json:"kept"` // it is in use already, with the key that it was given then
}

// Open makes the disk. One that is in use stays as it is; one that nobody uses is made
// anew, since it may have been left half made.
func Open(ctx context.Context, o Options) (Disk, error) {
	if device, err := boot.MappedPath(Name); err == nil {
		switch err := boot.CloseMapped(Name); {
		case errors.Is(err, unix.EBUSY):
			st, err := os.Stat(o.File)
			if err != nil {
				return Disk{}, failf(ReasonDisk, "%w", err)
			}
			return Disk{device, st.Size(), true}, link(o.Link, device)
		case err != nil:
			return Disk{}, failf(ReasonDisk, "%w", err)
		}
	}
	file, size, err := reserve(o.File)
	if err != nil {
		return Disk{}, err
	}
	defer file.Close()
	device, err := encrypt(file, size)
	if err != nil {
		return Disk{}, err
	}
	if o.MakeFS == nil {
		o.MakeFS = makeExt4
	}
	if err = o.MakeFS(ctx, device); err == nil {
		err = link(o.Link, device)
	}
	if err != nil {
		return Disk{}, errors.Join(err, boot.CloseMapped(Name))
	}
	return Disk{Device: device, Bytes: size}, nil
}

// reserve opens the file, with all of its blocks on the volume: a disk that runs out of
// them would take what is on it along.
func reserve(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, 0, failf(ReasonDisk, "%w", err)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	err = errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Fstatfs(int(f.Fd()), &fs))
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is no file")
	}
	if err != nil {
		f.Close()
		return nil, 0, failf(ReasonDisk, "%s: %w", path, err)
	}
	size, err := sizeOf(st.Size, st.Blocks*512, int64(fs.Bavail)*fs.Bsize)
	if err == nil && (size != st.Size || st.Blocks*512 < size) {
		// Another size than before is a new file: no old block is kept.
		if err = f.Truncate(0); err == nil {
			err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		}
		if err != nil {
			err = failf(ReasonSpace, "%d MiB at %s: %w", size>>20, path, err)
		}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// sizeOf says how large the disk is to be: as large as it is, where that is sound, else
// half of what the volume has for it. size and held are the file's, free is the volume's, bytes.
func sizeOf(size, held, free int64) (int64, error) {
	if size >= MinSize && size <= MaxSize && size%sizeUnit == 0 && held >= size {
		return size, nil
	}
	want := min((free+held)/2, MaxSize) / sizeUnit * sizeUnit
	if want < MinSize {
		return 0, failf(ReasonSpace, "the data volume has %d MiB left, twice %d are needed", (free+held)>>20, MinSize>>20)
	}
	return want, nil
}

// encrypt puts the file behind dm-crypt. The key is in this function, and in the kernel.
func encrypt(file *os.File, size int64) (device string, err error) {
	loop, err := boot.WritableLoop(file)
	if err != nil {
		return "", failf(ReasonDisk, "%w", err)
	}
	// From here on dm-crypt holds it, or nobody.
	defer loop.Close()
	var key [keySize]byte
	defer clear(key[:])
	if _, err := rand.Read(key[:]); err != nil {
		return "", failf(ReasonDisk, "%w", err)
	}
	device, err = boot.OpenCrypt(Name, loop.Name(), boot.Crypt{Size: size, SectorSize: sectorSize}, key[:])
	if err != nil {
		return "", failf(ReasonDisk, "%w", err)
	}
	return device, nil
}

// makeExt4 makes a file system without what is for a next boot: a journal, room to grow. With verity
// the kernel holds the files of layers against their digests, in blocks of 4096 bytes, which
// a small disk would not have by itself.
func makeExt4(ctx context.Context, device string) error {
	cmd := exec.CommandContext(ctx, "/usr/sbin/mkfs.ext4", "-q", "-F", "-L", "portcullis-eng", "-m", "0", "-b", "4096", "-O", "verity,^has_journal,^resize_inode",
		"-E", "nodiscard,lazy_itable_init=1", device)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return failf(ReasonDisk, "mkfs.ext4 (Debian package e2fsprogs): %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// link lets path lead to the device, also where it led elsewhere.
func link(path, device string) error {
	next := filepath.Join(filepath.Dir(path), ".next")
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return failf(ReasonDisk, "%w", err)
	}
	if err := errors.Join(os.Symlink(device, next), os.Rename(next, path)); err != nil {
		return failf(ReasonDisk, "%w", err)
	}
	return nil
}
