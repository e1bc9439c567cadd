package boot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ReasonMapper: a device-mapper device could not be made or found.
const ReasonMapper Reason = "device-mapper"

// OpenLinear makes the device name over sectors of the block device dev, from the
// sector start on (512 bytes each), and returns its path (/dev/dm-N).
func OpenLinear(name, dev string, start, sectors uint64) (string, error) {
	if sectors == 0 {
		return "", Failf(ReasonMapper, "%s would be empty", name)
	}
	major, minor, err := deviceNumber(dev)
	if err != nil {
		return "", Failf(ReasonMapper, "%w", err)
	}
	path, err := openMapped(name, 0, sectors, "linear", fmt.Sprintf("%d:%d %d", major, minor, start))
	if err != nil {
		return "", Failf(ReasonMapper, "%w", err)
	}
	return path, nil
}

// MappedPath returns the path of an existing device-mapper device (/dev/dm-N):
// nobody makes links by name in an initramfs.
func MappedPath(name string) (string, error) {
	ctl, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return "", Failf(ReasonMapper, "%w", err)
	}
	defer ctl.Close()
	d, err := dmCall(ctl, unix.DM_DEV_STATUS, newDM(name, 0))
	if err != nil {
		return "", Failf(ReasonMapper, "find %s: %w", name, err)
	}
	return mappedPath(d), nil
}

// CloseMapped removes a device-mapper device that nobody uses.
func CloseMapped(name string) error {
	ctl, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return Failf(ReasonMapper, "%w", err)
	}
	defer ctl.Close()
	if _, err := dmCall(ctl, unix.DM_DEV_REMOVE, newDM(name, 0)); err != nil {
		return Failf(ReasonMapper, "remove %s: %w", name, err)
	}
	return nil
}
