// Command gatewayd owns the PC's port: default deny, boot phases, grants, bans.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/gateway/link"
	"portcullis/gateway/nft"
	"portcullis/gateway/policy"
	"portcullis/gateway/server"
	"portcullis/gateway/violation"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

func main() {
	file := flag.String("config", config.DefaultPath, "configuration file")
	pc := flag.String("pc", "", "the PC of this port among several of the Pi: the name in attest.pcs; empty = the Pi has one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *file, *pc)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatewayd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file, pc string) error {
	c, err := config.LoadFor(file, pc)
	if err != nil {
		return err
	}
	port, err := policy.NewPort(c)
	if err != nil {
		return err
	}
	events := event.NewJSON(os.Stdout, "gatewayd", time.Now)
	kernel, err := nft.Open(nft.Options{PC: port.Name, Interface: port.Interface})
	if err != nil {
		return err
	}
	defer kernel.Close()
	wire, err := server.NewWire(port)
	if err != nil {
		return err
	}
	// Invariant 1: New returns with default deny in force; only then is anything listened on.
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	g, err := server.New(server.Options{Port: port, Boot: strings.TrimSpace(string(boot)), StateDir: filepath.Join(c.StateDir, "gatewayd"), Kernel: kernel,
		Wire: wire, Clock: clock.Real{}, Events: events})
	if err != nil {
		return err
	}
	l, err := rpc.Listen(filepath.Join(c.RunDir, rpc.GatewaySocket), c.Gateway.AllowedUIDs)
	if err != nil {
		return errors.Join(err, g.Abandon()) // from here on Run ends it
	}
	defer l.Close()
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewGatewayHandler(server.NewService(g)))

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	evidence := violation.NewReader(violation.Options{Group: port.LogGroup, PC: port.Name, Now: time.Now,
		Lost: func() { events.Emit("evidence.lost", event.Fields{"reason": "queue-full"}) }})
	bound, seen := make(chan struct{}), make(chan struct{})
	var first sync.Once
	parts := []func() error{
		func() error { return g.Run(ctx) },
		func() error { return rpc.Serve(ctx, l, mux) },
		func() error { return evidence.Run(ctx, func() { close(bound) }, g.Violation) },
		func() error { return kernel.Watch(ctx, func(e nft.Editor) { report(events, g.Changed(ctx, e)) }) },
		func() error {
			return link.Watch(ctx, port.Interface, func(s link.State) {
				report(events, g.Link(ctx, s))
				first.Do(func() { close(seen) })
			})
		},
	}
	ended := make(chan error, len(parts))
	for _, part := range parts {
		go func() {
			err := part()
			if err != nil {
				cancel(err)
			}
			ended <- err
		}()
	}
	go func() {
		for _, c := range []chan struct{}{bound, seen} {
			select {
			case <-c:
			case <-ctx.Done():
				return
			}
		}
		events.Emit("ready", event.Fields{"owned": kernel.Owned(), "interface": port.Interface})
	}()
	for range parts {
		err = errors.Join(err, <-ended)
	}
	return err
}

// report tells of a step that failed; the next event or restart tries again.
func report(events *event.Writer, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		events.Emit("gateway.failed", event.Fields{"reason": "kernel-refused", "detail": err.Error()})
	}
}
