package channel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verityOption gives the root's device the table that it has, with one option more. Data and root
// hash stay the same, and all goes on as before: the kernel refuses another kind of target in the
// place of verity, and not this.
func verityOption(args []string) (func(), error) {
	ctl, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	// call makes a request about the root's device; spec is a target and its parameters.
	call := func(request uint, flags uint32, spec []byte) ([]byte, error) {
		b := make([]byte, 4096)
		h := (*unix.DmIoctl)(unsafe.Pointer(&b[0]))
		h.Version, h.Data_size, h.Data_start, h.Flags = [3]uint32{4, 0, 0}, uint32(len(b)), unix.SizeofDmIoctl, flags
		copy(h.Name[:], "root")
		if copy(b[unix.SizeofDmIoctl:], spec) > 0 {
			h.Target_count = 1
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), uintptr(request), uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
			return nil, fmt.Errorf("device-mapper %#x: %w", request, errno)
		}
		return b[h.Data_start:], nil
	}
	table, err := call(unix.DM_TABLE_STATUS, unix.DM_STATUS_TABLE_FLAG, nil)
	if err != nil {
		return nil, err
	}
	var target unix.DmTargetSpec
	if _, err := binary.Decode(table, binary.NativeEndian, &target); err != nil {
		return nil, err
	}
	text, _, _ := bytes.Cut(table[unix.SizeofDmTargetSpec:], []byte{0})
	text = fmt.Appendf(bytes.Clone(text), " 1 %s\x00", args[0])
	target.Status, target.Next = 0, uint32(unix.SizeofDmTargetSpec+len(text)+7)&^7
	spec, err := binary.Append(nil, binary.NativeEndian, target)
	if err != nil {
		return nil, err
	}
	if _, err := call(unix.DM_TABLE_LOAD, unix.DM_READONLY_FLAG, append(spec, text...)); err != nil {
		return nil, err
	}
	_, err = call(unix.DM_DEV_SUSPEND, unix.DM_READONLY_FLAG|unix.DM_SKIP_LOCKFS_FLAG, nil) // without DM_SUSPEND_FLAG: resume, with the new table
	return nothing, err
}
