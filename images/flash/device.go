package flash

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Target is what an image is written to.
type Target interface {
	WriteAt(b []byte, off int64) (int, error)
	// ReadBack fills b with what the medium holds, not with what a cache remembers.
	ReadBack(b []byte, off int64) error
	Sync() error
	Size() int64 // bytes
}

// Device is an open disk or regular file. Offsets and lengths are multiples of 512 bytes.
type Device struct {
	f      *os.File
	size   int64
	direct bool // the page cache is not in between
	file   bool
}

// OpenDevice opens the disk for itself alone. The kernel refuses when anything on
// it is in use, whatever sysfs told before, and a name that now is another disk
// is found out.
func OpenDevice(d *Disk) (*Device, error) {
	flags := os.O_RDWR | unix.O_CLOEXEC
	if !d.File {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(d.Path, flags|unix.O_DIRECT, 0)
	direct := err == nil
	if errors.Is(err, unix.EINVAL) { // tmpfs on older kernels
		f, err = os.OpenFile(d.Path, flags, 0)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, refuse(ReasonBusy, "%s is in use", d.Path)
	case errors.Is(err, unix.EROFS):
		return nil, refuse(ReasonReadOnly, "%s cannot be written", d.Path)
	case err != nil:
		return nil, refuse(ReasonIO, "%v", err)
	}
	dev := &Device{f: f, size: d.Size, direct: direct, file: d.File}
	if err := dev.check(d); err != nil {
		f.Close()
		return nil, err
	}
	return dev, nil
}

// check compares the open file with what was looked at, and locks it.
func (d *Device) check(want *Disk) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &st); err != nil {
		return refuse(ReasonIO, "%s: %v", want.Path, err)
	}
	if err := unix.Flock(int(d.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return refuse(ReasonBusy, "%s: another program has locked it", want.Path)
	}
	if want.File {
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != want.Size {
			return refuse(ReasonNotDisk, "%s has changed", want.Path)
		}
		return nil
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || number != want.Number {
		return refuse(ReasonNotDisk, "%s is device %s, sysfs knows it as %s", want.Path, number, want.Number)
	}
	size, err := unix.IoctlGetInt(int(d.f.Fd()), unix.BLKGETSIZE64)
	if err != nil || int64(size) != want.Size {
		return refuse(ReasonIO, "%s has %d bytes, sysfs says %d, %v", want.Path, size, want.Size, err)
	}
	return nil
}

// Size implements Target.
func (d *Device) Size() int64 { return d.size }

// WriteAt implements Target.
func (d *Device) WriteAt(b []byte, off int64) (int, error) {
	for {
		n, err := d.f.WriteAt(b, off)
		if d.again(err) {
			continue
		}
		if err == nil && !d.direct {
			// Without this a gigabyte would wait in memory while the bar says that all is written.
			err = unix.SyncFileRange(int(d.f.Fd()), off, int64(len(b)),
				unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESPIPE) || errors.Is(err, unix.EINVAL) {
				err = nil
			}
		}
		return n, err
	}
}

// again switches to the page cache where a file system refuses to go without.
func (d *Device) again(err error) bool {
	if !d.direct || !d.file || !errors.Is(err, unix.EINVAL) {
		return false
	}
	flags, err := unix.FcntlInt(d.f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(d.f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	d.direct = false
	return err == nil
}

// ReadBack implements Target.
func (d *Device) ReadBack(b []byte, off int64) error {
	for {
		if !d.direct {
			if err := d.f.Sync(); err != nil {
				return err
			}
			if err := unix.Fadvise(int(d.f.Fd()), off, int64(len(b)), unix.FADV_DONTNEED); err != nil {
				return err
			}
		}
		n, err := d.f.ReadAt(b, off)
		if n == len(b) {
			return nil
		}
		if !d.again(err) {
			return fmt.Errorf("%d of %d bytes at %d: %w", n, len(b), off, err)
		}
	}
}

// Sync implements Target.
func (d *Device) Sync() error { return d.f.Sync() }

// Close lets the kernel look at the new partition table and gives the disk back.
func (d *Device) Close() error {
	if !d.file {
		// It looks again by itself when the last one closes the disk; a failure changes nothing on the card.
		_ = unix.IoctlSetInt(int(d.f.Fd()), unix.BLKRRPART, 0)
	}
	return d.f.Close()
}

// alignment is what direct reading and writing ask of a buffer, in bytes.
const alignment = 4096

// buffer returns n bytes that the kernel can hand to a device as they are.
func buffer(n int) []byte {
	b := make([]byte, n+alignment)
	skip := alignment - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%alignment)
	return b[skip : skip+n : skip+n]
}
