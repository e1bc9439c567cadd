package server_test

import (
	"testing"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/verdict"
)

// The cable was out for a moment: whatever is at its end now is not believed.
func TestAttack_CarrierLossVoidsTheSession(t *testing.T) {
	l := newLab(t)
	l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Carrier: true, CarrierLosses: 3})
	l.pxed.open(sid)
	l.start()
	key := newKey(t)
	stop := l.agent(sid, key)
	at, _ := l.awaitState(0, "trusted")
	// Heard after the claim, and with it trusted all the same.
	heard := l.gatewayd.asked.Load()
	for l.gatewayd.asked.Load() < heard+3 {
		at, _ = l.await(at+1, "evidence", nil)
	}
	if s := l.verdict().State; s != portcullisv1.TrustState_TRUST_STATE_TRUSTED {
		t.Fatalf("state %v before", s)
	}
	l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Carrier: true, CarrierLosses: 4})
	_, e := l.awaitState(at, "quarantined")
	if e["reason"] != verdict.ReasonLink {
		t.Errorf("reason %v", e["reason"])
	}
	// Not even the same agent comes back into this session.
	stop()
	l.agent(sid, key)
	l.await(at, "agent.refused", map[string]any{"reason": "claim-epoch"})
	// The next boot is another matter.
	l.pxed.open(sid2)
	l.agent(sid2, newKey(t))
	l.awaitState(at, "trusted")
}
