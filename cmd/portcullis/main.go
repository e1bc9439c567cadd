// Command portcullis is the operator's tool: images, lab, grants, ledger, configuration.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"portcullis/internal/cli"
)

// commands is filled by the file of each area.
var commands []*cli.Command

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := &cli.Command{Summary: "Portcullis: one Pi, the only door of a PC.", Sub: commands}
	code := cli.Run(ctx, root, &cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Colour: isTerminal(os.Stdout)}, os.Args[1:])
	stop()
	os.Exit(code)
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
