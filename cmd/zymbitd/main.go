// Command zymbitd is the only process that loads Zymbit's library. It answers the other
// programs over a UNIX socket (package hardware/zymbit has the protocol and the
// client) and watches the module's perimeter. Unlike every other program of the
// project it is linked dynamically, because it loads a shared library; it holds no key
// and is sandboxed by its unit.
//
// It was tested against a library of ours with the same interface, never against a module.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"syscall"

	"portcullis/hardware/zymbit"
	"portcullis/internal/clock"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "zymbitd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, errOut io.Writer) error {
	flags := flag.NewFlagSet("zymbitd", flag.ContinueOnError)
	flags.SetOutput(errOut)
	path := flags.String("library", defaultLibrary, "the vendor's library")
	socket := flags.String("socket", zymbit.Socket, "where to listen")
	allow := flags.String("allow", "", "a user besides root who may ask")
	slot := flags.Int("slot", 0, "the module's key slot of the device key")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 0 {
		return fmt.Errorf("no words are expected: %q", flags.Args())
	}
	allowed, err := peers(*allow)
	if err != nil {
		return err
	}
	lib, err := load(*path)
	if err != nil {
		return err
	}
	chip := zymbit.NewChip(lib, *slot, clock.Real{})
	defer chip.Close()
	l, err := listen(*socket)
	if err != nil {
		return err
	}
	defer l.Close()
	log := slog.New(slog.NewTextHandler(errOut, nil))
	id, err := chip.Identify(ctx)
	if err != nil {
		return err
	}
	log.Info("zymbitd listens", "socket", *socket, "model", id.Model, "firmware", id.Firmware)
	return zymbit.NewServer(chip, allowed, log).Serve(ctx, l)
}

// peers allows root, the daemon's own user and one more.
func peers(name string) (func(uint32) bool, error) {
	extra := uint32(0)
	if name != "" {
		u, err := user.Lookup(name)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		extra = uint32(n)
	}
	own := uint32(os.Getuid())
	return func(uid uint32) bool { return uid == 0 || uid == own || uid == extra }, nil
}

// listen makes the socket anew; one that an earlier process left is removed, anything
// else at that place is not.
func listen(path string) (*net.UnixListener, error) {
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	old := syscall.Umask(0o117)
	defer syscall.Umask(old)
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}
