package channel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// intrusion is one tool of an attacker with root: args are words after its name.
// What it has begun it keeps until hold has passed.
type intrusion struct {
	name, usage string
	run         func(args []string) (undo func(), err error)
}

var intrusions = []intrusion{
	{"patch", "PID", patchText},
	{"debug", "PID", debug},
	{"anonymous", "", mapAnonymous},
	{"writable", "FILE", mapWritable},
	{"memfd", "FILE", runMemfd},
	{"devmem", "", writeDevMem},
	{"kexec", "", loadKexec},
	{"sniff", "", sniff},
	{"sniffraw", "", sniffRaw},
	{"module", "FILE", loadModule},
	{"ioport", "", rawPorts},
	{"msr", "", writeMSR},
	{"verity", "OPTION", verityOption},
}

// intrude runs one of them: NAME ARG… DURATION. It prints ready when it is done,
// and an error where the kernel refuses.
func intrude(ctx context.Context, out io.Writer, args []string) (found bool, err error) {
	for _, in := range intrusions {
		words := len(strings.Fields(in.usage))
		if args[0] != in.name || len(args) != 2+words {
			continue
		}
		hold, err := time.ParseDuration(args[1+words])
		if err != nil {
			return true, err
		}
		runtime.LockOSThread() // ptrace(2) belongs to a thread
		defer runtime.UnlockOSThread()
		undo, err := in.run(args[1 : 1+words])
		if err != nil {
			return true, fmt.Errorf("%s: %w", in.name, err)
		}
		defer undo()
		fmt.Fprintln(out, "ready")
		select {
		case <-ctx.Done():
		case <-time.After(hold):
		}
		return true, nil
	}
	return false, nil
}

func nothing() {}

// attach stops a process as a debugger does.
func attach(text string) (pid int, err error) {
	if pid, err = strconv.Atoi(text); err != nil {
		return 0, err
	}
	if err := unix.PtraceAttach(pid); err != nil {
		return 0, err
	}
	_, err = unix.Wait4(pid, nil, 0, nil)
	return pid, err
}

// patchText writes over code of a process that it does not run again, with what was
// there: the page is the process's own from then on, and the program goes on as before.
func patchText(args []string) (func(), error) {
	pid, err := attach(args[0])
	if err != nil {
		return nil, err
	}
	defer unix.PtraceDetach(pid)
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n != 3 || perms != "r-xp" || !strings.Contains(line, "/") {
			continue
		}
		word := make([]byte, 8)
		if _, err := unix.PtracePeekText(pid, from+64, word); err != nil {
			return nil, err
		}
		_, err := unix.PtracePokeText(pid, from+64, word)
		return nothing, err
	}
	return nil, errors.New("the process has no code of a file")
}

// debug keeps a process under a debugger; it goes on.
func debug(args []string) (func(), error) {
	pid, err := attach(args[0])
	if err != nil {
		return nil, err
	}
	if err := unix.PtraceCont(pid, 0); err != nil {
		return nil, err
	}
	return nothing, nil // the kernel detaches when the debugger ends
}

// mapAnonymous has executable memory without a file, as injected code has.
func mapAnonymous([]string) (func(), error) {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	b[0] = 0xc3
	return func() { unix.Munmap(b) }, nil
}

// mapWritable maps a program of the image so that its code can be written.
func mapWritable(args []string) (func(), error) {
	f, err := os.Open(args[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	return func() { unix.Munmap(b) }, nil
}

// runMemfd starts a program from a file without a name.
func runMemfd(args []string) (func(), error) {
	b, err := os.ReadFile(args[0])
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("tamper", 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tamper")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return nil, err
	}
	p, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", fd), []string{"sleep", "3600"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil, f}})
	if err != nil {
		return nil, err
	}
	return func() { p.Kill(); p.Wait() }, nil
}

// kernelText is where Debian's kernel lies in physical memory without relocation.
const kernelText = 0x1000000

// writeDevMem writes a byte of the kernel, as it is, through /dev/mem.
func writeDevMem([]string) (func(), error) {
	f, err := os.OpenFile("/dev/mem", os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, kernelText); err != nil {
		return nil, err
	}
	_, err = f.WriteAt(b, kernelText)
	return nothing, err
}

// loadKexec loads another kernel: one page of memory (kexec_load(2)).
func loadKexec([]string) (func(), error) {
	page := make([]byte, 4096)
	segment := struct{ buf, size, at, space uintptr }{uintptr(unsafe.Pointer(&page[0])), 4096, 0x4000000, 4096}
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_LOAD, 0x4000000, 1, uintptr(unsafe.Pointer(&segment)), 0, 0, 0)
	runtime.KeepAlive(page)
	if errno != 0 {
		return nil, errno
	}
	return nothing, nil
}

// sniff opens a socket that sees every frame.
func sniff([]string) (func(), error) {
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all&0xffff)
	if err != nil {
		return nil, err
	}
	return func() { unix.Close(fd) }, nil
}

// sniffRaw opens a socket that gets every segment of TCP that comes to the machine.
func sniffRaw([]string) (func(), error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	return func() { unix.Close(fd) }, nil
}

// loadModule loads a module of the attacker's making: here a file that begins like
// one and is signed by nobody.
func loadModule(args []string) (func(), error) {
	b, err := os.ReadFile(args[0])
	if err != nil {
		return nil, err
	}
	if err := unix.InitModule(b, ""); err != nil {
		return nil, err
	}
	return nothing, nil
}

// writeMSR writes where the processor enters the kernel for a system call
// (IA32_LSTAR, 0xc0000082), with what is there.
func writeMSR([]string) (func(), error) {
	f, err := os.OpenFile("/dev/cpu/0/msr", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, 0xc0000082); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint64(b) == 0 {
		return nil, errors.New("no entry for system calls")
	}
	_, err = f.WriteAt(b, 0xc0000082)
	return nothing, err
}
