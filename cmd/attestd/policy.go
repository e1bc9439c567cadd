package main

import (
	"crypto/rand"
	"path/filepath"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/action"
	"portcullis/attestserver/server"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
)

// actionsOf opens what carries out the policy. A webhook that cannot be used costs an event: the
// other actions must go on.
func actionsOf(c *config.Config, events *event.Writer) func(*server.Server) (server.Actions, error) {
	var targets []*action.Target
	for _, w := range c.Attest.Webhooks {
		t, err := action.NewTarget(w.Name, w.URL, w.SecretFile, w.CAFile)
		if err != nil {
			events.Emit("webhook.refused", event.Fields{"name": w.Name, "detail": err.Error()})
			continue
		}
		targets = append(targets, t)
	}
	ladder := action.Ladder{Within: c.Attest.Ladder.Within, OffTime: c.Attest.Ladder.OffTime}
	for _, r := range c.Attest.Ladder.Rungs {
		ladder.Rungs = append(ladder.Rungs, action.Rung(r))
	}
	power := func(socket string) portcullisv1connect.PowerClient {
		return portcullisv1connect.NewPowerClient(rpc.Client(filepath.Join(c.RunDir, socket)), rpc.BaseURL)
	}
	return func(s *server.Server) (server.Actions, error) {
		return action.Open(action.Options{
			Journal: filepath.Join(c.StateDir, "attestd", "actions.journal"), PC: s,
			Gateway: portcullisv1connect.NewGatewayClient(rpc.Client(filepath.Join(c.RunDir, rpc.GatewaySocket)), rpc.BaseURL),
			Relay:   power(rpc.RelaySocket), Hook: power(rpc.HookSocket),
			Webhooks: targets, Ladder: ladder, Events: events, Clock: clock.Real{}, Random: rand.Reader,
		})
	}
}
