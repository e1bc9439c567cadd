// Command attestd asks the PC what it is running, at moments and in ways that
// the PC cannot predict, and tells gatewayd what follows from the answers.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/channel"
	"portcullis/attestserver/continuity"
	"portcullis/attestserver/expect"
	"portcullis/attestserver/identity"
	"portcullis/attestserver/reference"
	"portcullis/attestserver/schedule"
	"portcullis/attestserver/server"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

// memoryLimit keeps the heap small when a reference of tens of MiB goes through.
const memoryLimit = 48 << 20

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
	debug.SetMemoryLimit(memoryLimit)
	state := filepath.Join(c.StateDir, "attestd")
	refs, err := reference.Open(filepath.Join(state, "references"))
	if err != nil {
		return err
	}
	record, err := server.OpenRecord(filepath.Join(state, "verdicts"), key)
	if err != nil {
		return err
	}
	defer record.Close()
	images, err := server.NewImages(c.PXE.ImageDir, c.PXE.ReleaseKeys, c.PXE.Threshold, c.PXE.MinVersion,
		expect.Options{Noise: int64(c.Attest.NoiseMiB) << 20, Containers: c.Attest.Containers}.All)
	if err != nil {
		return err
	}
	var operators []ed25519.PublicKey
	for _, k := range c.Attest.OperatorKeys {
		b, err := base64.StdEncoding.DecodeString(k)
		if err != nil {
			return fmt.Errorf("attest.operator_keys: %w", err) // the configuration was checked
		}
		operators = append(operators, b)
	}
	plan, err := schedule.NewPlan(c.Attest.MeanGap, c.Attest.MinGap)
	if err != nil {
		return err
	}
	events := event.NewJSON(os.Stdout, "attestd", time.Now)
	epochFile := filepath.Join(state, "epoch.json")
	epochs, err := continuity.Open(epochFile)
	if err != nil {
		// Without them the PC has to boot again, which is the safe way on.
		events.Emit("epochs.lost", event.Fields{"detail": err.Error()})
		if err := os.Remove(epochFile); err != nil {
			return err
		}
		if epochs, err = continuity.Open(epochFile); err != nil {
			return err
		}
	}
	posture, warnings, err := postureOf(c.RunDir)
	if err != nil {
		events.Emit("posture.unknown", event.Fields{"detail": err.Error()})
	}
	if len(warnings) > 0 {
		events.Emit("posture.warning", event.Fields{"posture": string(posture), "warnings": warnings})
	}
	own := &policyFile{path: c.Attest.PolicyFile, events: events}
	s, err := server.New(server.Options{
		Key:     key,
		Boot:    portcullisv1connect.NewBootClient(rpc.Client(filepath.Join(c.RunDir, rpc.BootSocket)), rpc.BaseURL),
		Gateway: portcullisv1connect.NewGatewayClient(rpc.Client(filepath.Join(c.RunDir, rpc.GatewaySocket)), rpc.BaseURL),
		Images:  images, Refs: refs, Record: record, Events: events,
		Clock: clock.Real{}, Random: rand.Reader, Plan: plan, Deadline: c.Attest.Deadline, Epochs: epochs, Rekey: c.Attest.Rekey, Posture: string(posture), Warnings: warnings,
		Policy: own.first(), Actions: actionsOf(c, events),
		Machine: c.Link.PCMAC, Operators: operators,
	})
	if err != nil {
		return err
	}
	hangup, look := make(chan os.Signal, 1), time.NewTicker(policyLook)
	signal.Notify(hangup, syscall.SIGHUP)
	defer look.Stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go own.follow(ctx, hangup, look.C, s.SetPolicy)
	return serve(ctx, c, s, events)
}

// serve answers on the socket at once, and to agents as soon as the PC's port
// has its address.
func serve(ctx context.Context, c *config.Config, s *server.Server, events *event.Writer) error {
	socket, err := rpc.Listen(filepath.Join(c.RunDir, rpc.AttestSocket), c.Attest.AllowedUIDs)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		served <- rpc.Serve(ctx, socket, s.Handler())
		cancel()
	}()
	address := netip.AddrPortFrom(c.Link.Address.Addr(), c.Attest.Port).String()
	l, err := channel.Listen(ctx, address, func(err error) {
		events.Emit("listen.waiting", event.Fields{"address": address, "detail": err.Error()})
	})
	if err == nil {
		events.Emit("ready", event.Fields{"address": address})
		err = s.Run(ctx, l)
	}
	stopped := ctx.Err() != nil && errors.Is(err, ctx.Err())
	cancel()
	if stopped {
		err = nil
	}
	return errors.Join(err, <-served)
}
