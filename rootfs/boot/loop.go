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
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", Failf(ReasonLoop, "%w", err)
	}
	defer ctl.Close()
	for tries := 0; ; tries++ {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", Failf(ReasonLoop, "ask for a free loop device: %w", err)
		}
		dev := fmt.Sprintf("/dev/loop%d", n)
		err = configureLoop(dev, file)
		if err == nil {
			return dev, nil
		}
		// Somebody else may have taken the device between the two calls.
		if err != unix.EBUSY || tries == 8 {
			return "", Failf(ReasonLoop, "configure %s: %w", dev, err)
		}
	}
}

func configureLoop(dev string, file *os.File) error {
	d, err := os.OpenFile(dev, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.IoctlLoopConfigure(int(d.Fd()), &unix.LoopConfig{
		Fd:   uint32(file.Fd()),
		Size: BlockSize,
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY},
	})
}

// ioctl with a pointer argument.
func ioctl(fd uintptr, request uint, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
