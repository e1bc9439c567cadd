package boot

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReasonVerity: the verity device could not be made.
const ReasonVerity Reason = "verity-device"

// sectorSize is the kernel's unit of device-mapper tables, in bytes.
const sectorSize = 512

// dmVersion is the interface version asked for: major 4 has been the only one
// since Linux 2.6 (include/uapi/linux/dm-ioctl.h).
var dmVersion = [3]uint32{4, 0, 0}

// OpenVerity makes the read-only device-mapper device name over the block
// device dev, which holds data and hash tree, and returns its path (/dev/dm-N).
//
// A block that does not match the tree gives its reader an I/O error, which is
// the kernel's default. The options restart_on_corruption and
// panic_on_corruption are left out on purpose: no unverified byte gets through
// either way, but with them the machine would vanish without a word, where an
// agent that lives on reports the block as a finding.
func OpenVerity(name, dev string, v Verity) (string, error) {
	major, minor, err := deviceNumber(dev)
	if err != nil {
		return "", Failf(ReasonVerity, "%w", err)
	}
	path, err := openMapped(name, unix.DM_READONLY_FLAG, v.DataBlocks*(BlockSize/sectorSize), "verity", verityTable(major, minor, v))
	if err != nil {
		return "", Failf(ReasonVerity, "%w", err)
	}
	return path, nil
}

// deviceNumber of a device node.
func deviceNumber(dev string) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", dev, err)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}

// openMapped makes the device name with one target that covers all of it, and
// returns its path (/dev/dm-N).
func openMapped(name string, flags uint32, sectors uint64, kind, table string) (string, error) {
	return makeMapped(name, "", flags, sectors, kind, []byte(table))
}

// makeMapped is openMapped with a device-mapper UUID. What it makes of table is
// cleared behind it, here and, with DM_SECURE_DATA_FLAG, in the kernel.
func makeMapped(name, uuid string, flags uint32, sectors uint64, kind string, table []byte) (string, error) {
	ctl, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("device-mapper: %w", err)
	}
	defer ctl.Close()
	create := newDM(name, flags)
	copy(create.head().Uuid[:len(create.head().Uuid)-1], uuid)
	made, err := dmCall(ctl, unix.DM_DEV_CREATE, create)
	if err != nil {
		return "", fmt.Errorf("create device %s: %w", name, err)
	}
	load := newDM(name, flags)
	load.addTarget(sectors, kind, table)
	defer clear(load.b)
	if _, err = dmCall(ctl, unix.DM_TABLE_LOAD, load); err == nil {
		// Suspend without DM_SUSPEND_FLAG is resume: it makes the loaded table live.
		_, err = dmCall(ctl, unix.DM_DEV_SUSPEND, newDM(name, flags))
	}
	if err != nil {
		dmCall(ctl, unix.DM_DEV_REMOVE, newDM(name, 0)) // the first error is the one to report
		return "", fmt.Errorf("load table of %s: %w", name, err)
	}
	return mappedPath(made), nil
}

func mappedPath(d *dmBuffer) string { return fmt.Sprintf("/dev/dm-%d", unix.Minor(d.head().Dev)) }

// verityTable is the parameter string of the verity target
// (Documentation/admin-guide/device-mapper/verity.rst). Devices are given by
// number: a path would be looked up a second time.
func verityTable(major, minor uint32, v Verity) string {
	return fmt.Sprintf("1 %d:%d %d:%d %d %d %d %d sha256 %s %s",
		major, minor, major, minor, BlockSize, BlockSize, v.DataBlocks, v.HashStart, v.RootHash, v.Salt)
}

// dmBuffer is one request to the device-mapper: a header, then targets.
type dmBuffer struct{ b []byte }

func (d *dmBuffer) head() *unix.DmIoctl { return (*unix.DmIoctl)(unsafe.Pointer(&d.b[0])) }

func newDM(name string, flags uint32) *dmBuffer {
	d := &dmBuffer{make([]byte, unix.SizeofDmIoctl, 4096)}
	h := d.head()
	h.Version = dmVersion
	h.Data_start = unix.SizeofDmIoctl
	h.Flags = flags
	copy(h.Name[:len(h.Name)-1], name)
	return d
}

// addTarget appends one target that starts at sector 0.
func (d *dmBuffer) addTarget(sectors uint64, kind string, params []byte) {
	spec := unix.DmTargetSpec{Length: sectors}
	copy(spec.Target_type[:], kind)
	size := (unix.SizeofDmTargetSpec + len(params) + 1 + 7) &^ 7 // NUL-terminated, aligned to 8
	spec.Next = uint32(size)
	d.b = slices.Grow(d.b, size) // newDM has made room for every table of ours: no copy stays behind
	end := len(d.b) + size
	d.b, _ = binary.Append(d.b, binary.NativeEndian, spec) // a struct of fixed size
	d.b = append(d.b, params...)
	d.b = append(d.b, make([]byte, end-len(d.b))...)
	d.head().Target_count = 1
}

// dmCall makes the request; the header comes back filled in by the kernel.
func dmCall(ctl *os.File, request uint, d *dmBuffer) (*dmBuffer, error) {
	d.head().Data_size = uint32(len(d.b))
	return d, ioctl(ctl.Fd(), request, unsafe.Pointer(&d.b[0]))
}
