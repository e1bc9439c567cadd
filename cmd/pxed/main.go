// Command pxed boots the PC: DHCP, TFTP and HTTP on its cable, boot sessions,
// claims and the served-ledger.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/pxe/server"
)

func main() {
	file := flag.String("config", config.DefaultPath, "configuration file")
	flag.Parse()
	if err := run(*file); err != nil {
		fmt.Fprintln(os.Stderr, "pxed:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return server.Run(ctx, cfg, event.NewJSON(os.Stdout, "pxed", time.Now))
}
