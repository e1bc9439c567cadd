// Command pxed boots the PC: DHCP, TFTP and HTTP on its cable, boot sessions,
// claims and the served-ledger.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/internal/config"
	"portcullis/internal/drop"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
	"portcullis/pxe/server"
)

func main() {
	file := flag.String("config", config.DefaultPath, "configuration file")
	user := flag.String("user", "", "become this user (UID:GID) first, with the capabilities to listen: for containers, which begin as root")
	rest := flag.Duration("rest", 0, "end (status 10) when the PC has claimed its boot and nobody asked for so long; 0 = never")
	pc := flag.String("pc", "", "the PC of this port among several of the Pi: the name in attest.pcs; empty = the Pi has one")
	flag.Parse()
	err := run(*file, *pc, *user, *rest)
	if errors.Is(err, server.ErrDone) {
		os.Exit(rpc.ExitAtRest)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pxed:", err)
		os.Exit(1)
	}
}

func run(file, pc, user string, rest time.Duration) error {
	if user != "" {
		if err := drop.To(user, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW); err != nil {
			return err
		}
	}
	cfg, err := config.LoadFor(file, pc)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return server.Run(ctx, cfg, rest, event.NewJSON(os.Stdout, "pxed", time.Now))
}
