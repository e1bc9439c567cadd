package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// The ioctl interface of device-mapper, include/uapi/linux/dm-ioctl.h: a fixed
// head, then one target after the other.
const (
	dmTableStatus = 0xc138fd0c // _IOWR(0xfd, 12, struct dm_ioctl)
	dmHeadSize    = 312
	dmSpecSize    = 40
	dmBufferSize  = 16 << 10

	dmReadOnly    = 1 << 0
	dmStatusTable = 1 << 4
	dmBufferFull  = 1 << 8
)

// verityTable asks the kernel for the live table of a device and its state.
func (h Host) verityTable(device string) (v protocol.Verity, err error) {
	v.Device = device
	dev := optional(h.Sys, "block", device, "dev")
	var major, minor uint32
	if _, err := fmt.Sscanf(dev, "%d:%d", &major, &minor); err != nil {
		return v, fmt.Errorf("device number %q: %w", dev, err)
	}
	ctl, err := os.OpenFile(filepath.Join(h.Dev, "mapper/control"), os.O_RDWR, 0)
	if err != nil {
		return v, err
	}
	defer ctl.Close()
	number := unix.Mkdev(major, minor)
	table, err := dmStatus(ctl, number, dmStatusTable)
	if err != nil {
		return v, err
	}
	status, err := dmStatus(ctl, number, 0)
	if err != nil {
		return v, err
	}
	v.Targets, v.Target = table.targets, table.kind
	v.ReadOnly = table.flags&dmReadOnly != 0
	v.Status = status.text
	if v.Target != "verity" {
		return v, nil
	}
	return v, parseVerityTable(table.text, &v)
}

type dmTarget struct {
	targets int
	flags   uint32
	kind    string // of the first target
	text    string
}

func dmStatus(ctl *os.File, dev uint64, flags uint32) (dmTarget, error) {
	buf := make([]byte, dmBufferSize)
	le := binary.LittleEndian
	le.PutUint32(buf[0:], 4) // interface version 4.0.0
	le.PutUint32(buf[12:], dmBufferSize)
	le.PutUint32(buf[16:], dmHeadSize)
	le.PutUint32(buf[28:], flags)
	le.PutUint64(buf[40:], dev)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, ctl.Fd(), dmTableStatus, uintptr(unsafe.Pointer(&buf[0])))
	if errno != 0 {
		return dmTarget{}, fmt.Errorf("device-mapper table status: %w", errno)
	}
	return parseDMStatus(buf)
}

// parseDMStatus reads the first target of an answer to DM_TABLE_STATUS.
func parseDMStatus(buf []byte) (t dmTarget, err error) {
	if len(buf) < dmHeadSize {
		return t, errors.New("device-mapper answer is cut short")
	}
	le := binary.LittleEndian
	start := uint64(le.Uint32(buf[16:]))
	t.targets, t.flags = int(le.Uint32(buf[20:])), le.Uint32(buf[28:])
	if t.flags&dmBufferFull != 0 {
		return t, errors.New("device-mapper table is larger than expected")
	}
	if t.targets == 0 {
		return t, nil
	}
	if start+dmSpecSize > uint64(len(buf)) {
		return t, errors.New("device-mapper answer is cut short")
	}
	spec := buf[start:]
	t.kind = cString(spec[24:40])
	t.text = cString(spec[dmSpecSize:])
	return t, nil
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b[:min(len(b), protocol.MaxString)])
}
