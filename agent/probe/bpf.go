package probe

import (
	"encoding/hex"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// bpfKind says by which commands of bpf(2) one kind of object is listed.
type bpfKind struct {
	kind     string
	next, fd int
}

var bpfKinds = []bpfKind{
	{protocol.BPFProgram, unix.BPF_PROG_GET_NEXT_ID, unix.BPF_PROG_GET_FD_BY_ID},
	{protocol.BPFLink, unix.BPF_LINK_GET_NEXT_ID, unix.BPF_LINK_GET_FD_BY_ID},
	{protocol.BPFMap, unix.BPF_MAP_GET_NEXT_ID, unix.BPF_MAP_GET_FD_BY_ID},
}

// idAttr is the part of union bpf_attr for the commands that go by id.
type idAttr struct{ id, nextID, openFlags, _ uint32 }

// infoAttr is the part for BPF_OBJ_GET_INFO_BY_FD.
type infoAttr struct {
	fd, length uint32
	info       uint64
}

func bpf(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// bpfObjects lists all eBPF objects by their ids. A kernel without bpf(2) has none.
func bpfObjects() (out []protocol.BPFObject, err error) {
	for _, k := range bpfKinds {
		for id := uint32(0); ; {
			a := idAttr{id: id}
			_, err := bpf(k.next, unsafe.Pointer(&a), unsafe.Sizeof(a))
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOSYS) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("list eBPF %ss: %w", k.kind, err)
			}
			id = a.nextID
			o, err := k.describe(id)
			if errors.Is(err, unix.ENOENT) {
				continue // gone meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("eBPF %s %d: %w", k.kind, id, err)
			}
			if out = append(out, o); len(out) > protocol.MaxBPFObjects {
				return nil, fmt.Errorf("more than %d eBPF objects", protocol.MaxBPFObjects)
			}
		}
	}
	return out, nil
}

// describe reads the head of struct bpf_prog_info, bpf_map_info or bpf_link_info
// (include/uapi/linux/bpf.h).
func (k bpfKind) describe(id uint32) (protocol.BPFObject, error) {
	o := protocol.BPFObject{Kind: k.kind, ID: id}
	a := idAttr{id: id}
	fd, err := bpf(k.fd, unsafe.Pointer(&a), unsafe.Sizeof(a))
	if err != nil {
		return o, err
	}
	defer unix.Close(fd)
	var info [96]byte
	get := infoAttr{fd: uint32(fd), length: uint32(len(info)), info: uint64(uintptr(unsafe.Pointer(&info)))}
	if _, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&get), unsafe.Sizeof(get)); err != nil {
		return o, err
	}
	o.Type = native(info[0:])
	switch k.kind {
	case protocol.BPFProgram:
		o.Tag, o.Name = hex.EncodeToString(info[8:16]), clean(unix.ByteSliceToString(info[64:80]))
	case protocol.BPFMap:
		o.Name = clean(unix.ByteSliceToString(info[24:40]))
	case protocol.BPFLink:
		o.Program = native(info[8:])
	}
	return o, nil
}

func native(b []byte) uint32 { return *(*uint32)(unsafe.Pointer(&b[0])) }

// keysOf describes the keys of a keyring (keyctl(2)): its own, and the names of
// the rings in it.
func keysOf(serial int) ([]string, error) {
	b := make([]byte, 4*protocol.MaxKeys)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, serial, b, 0)
	if err != nil {
		return nil, err
	}
	if n > len(b) {
		return nil, fmt.Errorf("%d keys, at most %d", n/4, protocol.MaxKeys)
	}
	var out []string
	for b = b[:n&^3]; len(b) > 0; b = b[4:] {
		s, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(int32(native(b))))
		if err != nil {
			return nil, err
		}
		out = append(out, clean(describedKey(s)))
	}
	return out, nil
}
