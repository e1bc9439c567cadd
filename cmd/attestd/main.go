// Command attestd asks the PC what it is running, at moments and in ways that
// the PC cannot predict, and tells gatewayd what follows from the answers.
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"portcullis/attestserver/channel"
	"portcullis/attestserver/identity"
	"portcullis/attestserver/server"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

// memoryLimit keeps the heap small when a reference of tens of MiB goes through.
const memoryLimit = 48 << 20

// memoryPerPC is what each PC beyond the first may add. It adds some 100 KiB with garbage:
// against a limit that is near, the collector never rests.
const memoryPerPC = 256 << 10

// garbage is how much may be allocated between two rounds of the collector, in parts of a
// hundred of what is in use. attestd mostly waits: a third less memory is worth the rounds.
const garbage = 50

func main() {
	file := flag.String("config", config.DefaultPath, "configuration file")
	initKey := flag.Bool("init-key", false, "make the gateway key if there is none, print its public half (base64) and end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *file, *initKey)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "attestd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file string, initKey bool) error {
	c, err := config.Load(file)
	if err != nil {
		return err
	}
	key, err := identity.LoadOrCreate(c.Attest.KeyFile)
	if err != nil {
		return err
	}
	if initKey {
		fmt.Println(base64.StdEncoding.EncodeToString(identity.PublicKey(key)))
		return nil
	}
	debug.SetGCPercent(garbage)
	debug.SetMemoryLimit(memoryLimit + memoryPerPC*int64(len(c.PCs())-1))
	record, err := server.OpenRecord(filepath.Join(c.StateDir, "attestd", "verdicts"), key)
	if err != nil {
		return err
	}
	defer record.Close()
	events := event.NewJSON(os.Stdout, "attestd", time.Now)
	own := &policyFile{path: c.Attest.PolicyFile, events: events}
	shared, err := sharedOf(c, key, record, events)
	if err != nil {
		return err
	}
	shared.Policy = own.first()
	fleet, err := fleetOf(c, shared, events)
	if err != nil {
		return err
	}
	hangup, look := make(chan os.Signal, 1), time.NewTicker(policyLook)
	signal.Notify(hangup, syscall.SIGHUP)
	defer look.Stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go own.follow(ctx, hangup, look.C, fleet.SetPolicy)
	return serve(ctx, c, fleet, events)
}

// serve answers on the socket at once, and to agents as soon as the port of their
// PC has its address.
func serve(ctx context.Context, c *config.Config, fleet *server.Fleet, events *event.Writer) error {
	socket, err := rpc.Listen(filepath.Join(c.RunDir, rpc.AttestSocket), c.Attest.AllowedUIDs)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		served <- rpc.Serve(ctx, socket, fleet.Handler())
		cancel()
	}()
	outside := make(chan error, 1)
	go func() {
		outside <- serveOutside(ctx, c.Attest.AskListen, fleet, events)
		cancel()
	}()
	addresses := make(map[string]netip.Addr)
	for _, pc := range c.PCs() {
		addresses[pc.Name] = pc.Address
	}
	err = fleet.Run(ctx, func(ctx context.Context, pc string) (net.Listener, error) {
		address := netip.AddrPortFrom(addresses[pc], c.Attest.Port).String()
		events := eventsOf(events, pc)
		l, err := channel.Listen(ctx, address, func(err error) {
			events.Emit("listen.waiting", event.Fields{"address": address, "detail": err.Error()})
		})
		if err == nil {
			events.Emit("ready", event.Fields{"address": address})
		}
		return l, err
	})
	cancel()
	return errors.Join(err, <-served, <-outside)
}
