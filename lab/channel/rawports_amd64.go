package channel

import "golang.org/x/sys/unix"

// rawPorts asks for the processor's I/O ports, by which every device can be reached.
func rawPorts([]string) (func(), error) {
	if _, _, errno := unix.Syscall(unix.SYS_IOPL, 3, 0, 0); errno != 0 {
		return nil, errno
	}
	return nothing, nil
}
