// Command zymbittool plays the vendor's three tools in a test's image, by the name it
// is called with. It has no secret: it asks the machine's virtio-serial port, behind
// which the test plays the module, as the real tools ask their bus.
//
// Like them it needs its directory: the name under which module and machine know each
// other, and a count that both raise with each call.
//
//	zkunlockifs FILE    prints what was locked
//	zklockifs FILE      prints the locked file
//	zkgrifs N           prints N random bytes
package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// port is lab/pi.ModulePort; that package would bring QEMU into an initramfs.
const port = "org.portcullis.module"

func main() {
	out, err := run(filepath.Base(os.Args[0]), os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdout.Write(out)
}

func run(tool string, args []string) ([]byte, error) {
	if len(args) != 1 {
		return nil, errors.New("one argument is expected")
	}
	switch tool {
	case "zkgrifs":
		return ask("random", []byte(args[0]))
	case "zklockifs", "zkunlockifs":
		b, err := os.ReadFile(args[0])
		if err != nil {
			return nil, err
		}
		return ask(strings.TrimSuffix(strings.TrimPrefix(tool, "zk"), "ifs"), b)
	}
	return nil, fmt.Errorf("%s is no tool", tool)
}

// Files of the directory.
const (
	dir   = "/var/lib/zymbit/"
	id    = dir + "id"
	count = dir + "state/count"
)

// known returns the name, and the count after it was raised.
func known() (name string, calls int, err error) {
	b, err := os.ReadFile(id)
	if err != nil {
		return "", 0, err
	}
	c, err := os.ReadFile(count)
	if err != nil {
		return "", 0, err
	}
	if calls, err = strconv.Atoi(string(c)); err != nil {
		return "", 0, err
	}
	calls++
	return string(b), calls, os.WriteFile(count, []byte(strconv.Itoa(calls)), 0o600)
}

// ask sends a line and reads one: an operation, its argument in base64, name and count
// there; "ok" and the result, or a reason, back.
func ask(op string, argument []byte) ([]byte, error) {
	name, calls, err := known()
	if err != nil {
		return nil, err
	}
	f, err := open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s %s %s %d\n", op, base64.StdEncoding.EncodeToString(argument), name, calls); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return nil, err
	}
	state, result, _ := strings.Cut(strings.TrimSpace(line), " ")
	if state != "ok" {
		return nil, errors.New("the module: " + state + " " + result)
	}
	return base64.StdEncoding.DecodeString(result)
}

func open() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == port {
			// Blocking: the runtime's poller takes a port for closed before its first byte.
			fd, err := syscall.Open("/dev/"+filepath.Base(filepath.Dir(n)), syscall.O_RDWR, 0)
			if err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), "module"), nil
		}
	}
	return nil, errors.New("no module answers")
}
