package session

import (
	"context"

	"portcullis/internal/event"
)

// Reassert puts gatewayd right when it does not know our session, because it
// lost its state: the port is opened for the session again from the beginning,
// so no trust is carried over, only the boot or the agent's channel. It is free
// when both agree, and does nothing while gatewayd cannot be reached.
func (m *Manager) Reassert(ctx context.Context) {
	m.boots.Lock()
	defer m.boots.Unlock()
	m.claims.Lock()
	defer m.claims.Unlock()
	s, ok := m.Newest()
	if !ok || !s.Live() && s.State != Claimed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
	defer cancel()
	theirs, err := m.cfg.Gateway.Session(ctx)
	if err != nil || theirs == s.ID {
		return
	}
	err = m.cfg.Gateway.OpenBoot(ctx, s.ID, s.MAC, s.Address)
	if err == nil && s.State == Claimed {
		err = m.cfg.Gateway.CloseBoot(ctx, s.ID)
	}
	if err != nil {
		m.cfg.Events.Emit("gateway.failed", event.Fields{"session": s.ID, "detail": err.Error()})
		return
	}
	m.cfg.Events.Emit("gateway.reopened", event.Fields{"session": s.ID})
}
