package verity

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors of Measure and Enable.
var (
	// ErrNone is a file without verity.
	ErrNone = errors.New("verity: the file has none")
	// ErrUnsupported is a kernel or a file system that has no fs-verity, or none with
	// blocks of 4096 bytes.
	ErrUnsupported = errors.New("verity: not of this kernel or file system")
	// ErrOther is a file with verity by another algorithm.
	ErrOther = errors.New("verity: of another algorithm")
)

// Files asks for verity and switches it on: the kernel's, or a test's.
type Files interface {
	Measure(f *os.File) (Sum, error)
	Enable(f *os.File) error
}

// Kernel is the real one.
type Kernel struct{}

var _ Files = Kernel{}

// own are the file systems whose own code answers for verity. One in user space may pass
// the question on to its program, and that may answer anything.
var own = []int64{unix.EXT4_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC}

// native is nil for a file on one of own.
func native(f *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("verity: %w", err)
	}
	for _, magic := range own {
		if int64(st.Type) == magic {
			return nil
		}
	}
	return fmt.Errorf("%w: type %#x", ErrUnsupported, st.Type)
}

// Measure is the digest that the kernel holds every page of an open regular file
// against. It reads nothing of it. ErrNone, ErrUnsupported, ErrOther.
func (Kernel) Measure(f *os.File) (Sum, error) {
	if err := native(f); err != nil {
		return Sum{}, err
	}
	// struct fsverity_digest with room behind it for the largest digest, SHA-512's.
	var d struct {
		unix.FsverityDigest
		digest [64]byte
	}
	d.Size = uint16(len(d.digest))
	err := ioctl(f, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&d))
	switch {
	case errors.Is(err, unix.ENODATA):
		return Sum{}, ErrNone
	case unsupported(err):
		return Sum{}, fmt.Errorf("%w: %w", ErrUnsupported, err)
	case err != nil:
		return Sum{}, fmt.Errorf("verity: measure: %w", err)
	}
	if d.Algorithm != unix.FS_VERITY_HASH_ALG_SHA256 || int(d.Size) != len(Sum{}) {
		return Sum{}, ErrOther
	}
	return Sum(d.digest[:len(Sum{})]), nil
}

// Enable switches verity on for a file that is open for reading, and that nobody has open for
// writing (ETXTBSY). The kernel reads all of it. It needs the right to write the
// file, and a mount that may be written. A file that has verity already is no error.
func (Kernel) Enable(f *os.File) error {
	if err := native(f); err != nil {
		return err
	}
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: BlockSize}
	err := ioctl(f, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg))
	switch {
	case err == nil, errors.Is(err, unix.EEXIST):
		return nil
	case unsupported(err), errors.Is(err, unix.EINVAL): // EINVAL: blocks of this size are none of this file system's
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("verity: enable: %w", err)
}

func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOSYS)
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}
