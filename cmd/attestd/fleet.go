package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"portcullis/attestserver/continuity"
	"portcullis/attestserver/expect"
	"portcullis/attestserver/reference"
	"portcullis/attestserver/schedule"
	"portcullis/attestserver/server"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

// sharedOf is what all PCs have in common.
func sharedOf(c *config.Config, key ed25519.PrivateKey, record *server.Record, events *event.Writer) (server.Options, error) {
	images, err := server.NewImages(c.PXE.ImageDir, c.PXE.ReleaseKeys, c.PXE.Threshold, c.PXE.MinVersion,
		expect.Options{Noise: int64(c.Attest.NoiseMiB) << 20, Containers: c.Attest.Containers}.All)
	if err != nil {
		return server.Options{}, err
	}
	plan, err := schedule.NewPlan(c.Attest.MeanGap, c.Attest.MinGap)
	if err != nil {
		return server.Options{}, err
	}
	posture, warnings, err := postureOf(c.RunDir)
	if err != nil {
		events.Emit("posture.unknown", event.Fields{"detail": err.Error()})
	}
	if len(warnings) > 0 {
		events.Emit("posture.warning", event.Fields{"posture": string(posture), "warnings": warnings})
	}
	var operators []ed25519.PublicKey
	for _, k := range c.Attest.OperatorKeys {
		b, err := base64.StdEncoding.DecodeString(k)
		if err != nil {
			return server.Options{}, fmt.Errorf("attest.operator_keys: %w", err) // the configuration was checked
		}
		operators = append(operators, b)
	}
	return server.Options{Operators: operators, Key: key, Images: images, Record: record, Clock: clock.Real{}, Random: rand.Reader, Plan: plan,
		Deadline: c.Attest.Deadline, Rekey: c.Attest.Rekey, Posture: string(posture), Warnings: warnings}, nil
}

// fleetOf makes a server for each PC.
func fleetOf(c *config.Config, shared server.Options, events *event.Writer) (*server.Fleet, error) {
	actions := newActor(c, events)
	var all []*server.Server
	for _, pc := range c.PCs() {
		s, err := serverOf(pc, shared, actions, eventsOf(events, pc.Name))
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return server.NewFleet(all)
}

// serverOf makes the server of one PC, with what is its own.
func serverOf(pc config.PC, o server.Options, actions *actor, events *event.Writer) (*server.Server, error) {
	refs, err := reference.Open(filepath.Join(pc.StateDir, "references"))
	if err != nil {
		return nil, err
	}
	epochs, err := epochsOf(filepath.Join(pc.StateDir, "epoch.json"), events)
	if err != nil {
		return nil, err
	}
	o.Name, o.Machine, o.Refs, o.Epochs, o.Events = pc.Name, pc.MAC, refs, epochs, events
	o.Boot = bootAt{actions.clients, filepath.Join(pc.RunDir, rpc.BootSocket)}
	o.Gateway = gatewayAt{actions.clients, filepath.Join(pc.RunDir, rpc.GatewaySocket)}
	o.Actions = func(s *server.Server) (server.Actions, error) { return actions.open(pc, s, o.Gateway, events) }
	return server.New(o)
}

// epochsOf opens the epochs of a PC. Without them it has to boot again, which is the
// safe way on.
func epochsOf(path string, events *event.Writer) (*continuity.Keeper, error) {
	epochs, err := continuity.Open(path)
	if err == nil {
		return epochs, nil
	}
	events.Emit("epochs.lost", event.Fields{"detail": err.Error()})
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return continuity.Open(path)
}

// eventsOf names the PC in its events, where it has a name.
func eventsOf(events *event.Writer, pc string) *event.Writer {
	if pc == "" {
		return events
	}
	return events.With(event.Fields{"pc": pc})
}
