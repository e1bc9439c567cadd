package channel

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// progAttr is the part of union bpf_attr for BPF_PROG_LOAD that is needed here.
type progAttr struct {
	kind, count   uint32
	instructions  uint64
	license       uint64
	level, size   uint32
	buffer        uint64
	version, flag uint32
	name          [16]byte
}

// holdBPF loads an eBPF program that returns 0, of the kind for sockets, and
// keeps it for a time: a tool of tests that play the attacker.
func holdBPF(ctx context.Context, out io.Writer, text string) error {
	wait, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	code := []uint64{0x00000000000000b7, 0x0000000000000095} // r0 = 0; exit
	license := []byte("GPL\x00")
	a := progAttr{kind: unix.BPF_PROG_TYPE_SOCKET_FILTER, count: uint32(len(code)),
		instructions: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	copy(a.name[:], "tamper")
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		return fmt.Errorf("load an eBPF program: %w", errno)
	}
	defer unix.Close(int(fd))
	fmt.Fprintln(out, "loaded")
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}
