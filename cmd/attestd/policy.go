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

// actor opens what carries out the policy, for each PC with the same webhooks and rungs.
type actor struct {
	clients *clients
	targets []*action.Target
	ladder  action.Ladder
}

// newActor reads the webhooks' secrets. A webhook that cannot be used costs an event:
// the other actions must go on.
func newActor(c *config.Config, events *event.Writer) *actor {
	a := &actor{clients: newClients(), ladder: action.Ladder{Within: c.Attest.Ladder.Within, OffTime: c.Attest.Ladder.OffTime}}
	for _, w := range c.Attest.Webhooks {
		t, err := action.NewTarget(w.Name, w.URL, w.SecretFile, w.CAFile)
		if err != nil {
			events.Emit("webhook.refused", event.Fields{"name": w.Name, "detail": err.Error()})
			continue
		}
		a.targets = append(a.targets, t)
	}
	for _, r := range c.Attest.Ladder.Rungs {
		a.ladder.Rungs = append(a.ladder.Rungs, action.Rung(r))
	}
	return a
}

func (a *actor) open(pc config.PC, s *server.Server, gateway portcullisv1connect.GatewayClient, events *event.Writer) (server.Actions, error) {
	power := func(socket string) powerAt { return powerAt{a.clients, filepath.Join(pc.RunDir, socket)} }
	return action.Open(action.Options{
		Journal: filepath.Join(pc.StateDir, "actions.journal"), PC: s, Gateway: gateway,
		Relay: power(rpc.RelaySocket), Hook: power(rpc.HookSocket),
		Webhooks: a.targets, Ladder: a.ladder, Events: events, Clock: clock.Real{}, Random: rand.Reader,
	})
}
