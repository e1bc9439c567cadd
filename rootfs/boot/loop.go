package boot

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReasonLoop: no loop device could be set up.
const ReasonLoop Reason = "loop-device"

// AttachLoop puts a file behind a free loop device, read-only, with blocks of
// BlockSize, and returns its path. Needs Linux 5.8 (LOOP_CONFIGURE). The
// device holds the file; the caller may close it.
func AttachLoop(file *os.File) (string, error) {
	d, err := freeLoop(file, os.O_RDONLY, unix.LO_FLAGS_READ_ONLY)
	if err != nil {
		return "", err
	}
	defer d.Close()
	return d.Name(), nil
}

// WritableLoop puts a file behind a free loop device for reading and writing, and
// returns the device, open: it lets go of the file when nobody has it open any more.
// Nothing of the file is kept in memory a second time.
func WritableLoop(file *os.File) (*os.File, error) {
	return freeLoop(file, os.O_RDWR, unix.LO_FLAGS_AUTOCLEAR|unix.LO_FLAGS_DIRECT_IO)
}

// freeLoop puts file behind a loop device that nobody uses, and returns that, open.
func freeLoop(file *os.File, mode int, flags uint32) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, Failf(ReasonLoop, "%w", err)
	}
	defer ctl.Close()
	for tries := 0; ; tries++ {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, Failf(ReasonLoop, "ask for a free loop device: %w", err)
		}
		dev := fmt.Sprintf("/dev/loop%d", n)
		d, err := configureLoop(dev, file, mode, flags)
		if err == nil {
			return d, nil
		}
		// Somebody else may have taken the device between the two calls.
		if err != unix.EBUSY || tries == 8 {
			return nil, Failf(ReasonLoop, "configure %s: %w", dev, err)
		}
	}
}

func configureLoop(dev string, file *os.File, mode int, flags uint32) (*os.File, error) {
	d, err := os.OpenFile(dev, mode, 0)
	if err != nil {
		return nil, err
	}
	err = unix.IoctlLoopConfigure(int(d.Fd()), &unix.LoopConfig{
		Fd:   uint32(file.Fd()),
		Size: BlockSize,
		Info: unix.LoopInfo64{Flags: flags},
	})
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// ioctl with a pointer argument.
func ioctl(fd uintptr, request uint, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
