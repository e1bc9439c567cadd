package server_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/action"
	"portcullis/attestserver/policy"
)

func rules(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// believed is a lab with an honest PC that is believed.
func believed(t testing.TB, text string, change func(*lab)) *lab {
	t.Helper()
	l := newLab(t)
	l.policy = rules(t, text)
	if change != nil {
		change(l)
	}
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	return l
}

// A policy without a rule changes nothing: the state machine is the floor.
func TestEmptyPolicyIsNotLenient(t *testing.T) {
	l := believed(t, "rules: []", nil)
	l.machine.set("procs", "tampered")
	at, _ := l.awaitState(0, "suspect")
	l.awaitState(at, "quarantined")
}

// A rule may be stricter than the state machine: here one failure is enough.
func TestRuleQuarantinesAtTheFirstFailure(t *testing.T) {
	l := believed(t, "rules: [{name: strict, when: 'failures > 0', then: [report, quarantine]}]", nil)
	l.machine.setOnce("procs", "tampered")
	at, e := l.awaitState(0, "quarantined")
	if e["from"] != "suspect" || e["reason"] != "policy-rule" {
		t.Errorf("%v", e)
	}
	l.await(at-1, "action.ended", map[string]any{"action": "quarantine", "result": "done"})
	if p := l.gatewayd.last(); p.Phase != portcullisv1.Phase_PHASE_QUARANTINE || p.Session != sid {
		t.Errorf("gatewayd was told %v", p)
	}
	if v := l.verdict(); v.Failures != 1 || v.State != portcullisv1.TrustState_TRUST_STATE_QUARANTINED {
		t.Errorf("%v", v)
	}
	// A restart does not lift it.
	l.stop()
	l.start()
	l.awaitState(0, "quarantined")
}

// Another policy comes into force while attestd runs, and with the next judgement.
func TestSetPolicyTakesEffectAtOnce(t *testing.T) {
	l := believed(t, "rules: []", nil)
	l.server.SetPolicy(rules(t, "rules: [{name: now, when: 'agent && state == \"trusted\"', then: [quarantine]}]"))
	_, e := l.awaitState(0, "quarantined")
	if e["reason"] != "policy-rule" {
		t.Errorf("%v", e)
	}
}

// The whole way: a fatal finding, the message to the agent on the real channel, the PC
// boots, the action is over, and what boots is judged anew.
func TestRuleRebootsThePCThroughItsAgent(t *testing.T) {
	l := believed(t, `rules: [{name: fatal, when: 'findings.exists(f, f.class == "fatal")', then: [reboot]}]`, func(l *lab) {
		l.ladder = action.Ladder{Rungs: []action.Rung{action.RungAgent}, Within: patience}
	})
	l.machine.setOnce("procs", "tampered")
	if off := <-l.downs; off {
		t.Error("powered off instead of rebooted")
	}
	at, _ := l.await(0, "action.step", map[string]any{"rung": "agent", "result": ""})
	l.pxed.open(sid2)
	l.await(at, "action.ended", map[string]any{"action": "reboot", "result": "done", "session": sid})
	l.agent(sid2, newKey(t))
	if _, e := l.awaitState(at, "trusted"); e["session"] != sid2 {
		t.Errorf("%v", e)
	}
}

// An attestd that is stopped in the middle of the ladder goes on after its restart.
func TestRebootGoesOnAfterARestart(t *testing.T) {
	l := believed(t, `rules: [{name: fatal, when: 'findings.exists(f, f.class == "fatal")', then: [reboot]}]`, func(l *lab) {
		l.ladder = action.Ladder{Rungs: []action.Rung{action.RungAgent}, Within: patience}
	})
	l.machine.setOnce("procs", "tampered")
	<-l.downs
	l.stop()
	l.start() // at another address: the agent of before does not find it
	l.await(0, "action.resumed", map[string]any{"action": "reboot", "session": sid})
	l.pxed.open(sid2)
	l.await(0, "action.ended", map[string]any{"action": "reboot", "session": sid})
}

func TestRuleStopsTheTasksOfAQuarantinedPC(t *testing.T) {
	l := believed(t, policy.DefaultText(), func(l *lab) {
		l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Carrier: true,
			Grants: []*portcullisv1.Grant{{Id: "g-1", Task: "build"}, {Id: "g-2", Task: "build"}}})
	})
	l.machine.set("procs", "tampered")
	at, _ := l.awaitState(0, "quarantined")
	l.await(at, "action.ended", map[string]any{"action": "stop_task", "result": "done"})
	if n := l.gatewayd.grants(); n != 0 {
		t.Errorf("%d grants are left", n)
	}
	_, e := l.await(0, "policy.report", map[string]any{"rule": "suspect"})
	if e["tier"] != "T0" || e["posture"] != "none" || fmt.Sprint(e["findings"]) != "[procs: procs-wrong]" {
		t.Errorf("%v", e)
	}
}

// What gatewayd says reaches the rules: grants, cable, violations.
func TestRulesSeeTheWire(t *testing.T) {
	l := believed(t, `rules:
  - {name: tasks, when: 'gateway && "build" in tasks && carrier && state == "trusted" && agent && image != "" && tier == "T0"', then: [report], cooldown: 1s}
  - {name: losses, when: 'link_losses == 2 && !carrier', then: [report]}
  - {name: loud, when: 'violations > 5 || banned', then: [report]}
`, func(l *lab) {
		l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, Carrier: true, CarrierLosses: 3, Grants: []*portcullisv1.Grant{{Id: "g", Task: "build"}}})
	})
	l.await(0, "policy.report", map[string]any{"rule": "tasks"})
	l.gatewayd.set(&portcullisv1.GetGatewayStatusResponse{Session: sid, CarrierLosses: 5, ViolationsTotal: 6})
	l.await(0, "policy.report", map[string]any{"rule": "loud"})
	// Those before gatewayd's first word are not this session's.
	l.await(0, "policy.report", map[string]any{"rule": "losses"})
}

func TestConditionWithoutAnswerIsToldAndDoesNothing(t *testing.T) {
	l := believed(t, `rules: [{name: hasty, when: 'findings[0].class == "fatal"', then: [power_off]}]`, nil)
	l.await(0, "policy.unanswered", map[string]any{"rule": "hasty"})
	if _, e, _ := l.events.find(0, "action.begun", nil); e != nil {
		t.Errorf("%v", e)
	}
}

// BenchmarkQuarantineByRule measures from the event that tells of the finding to gatewayd having
// been asked, over a real unix socket; cmd/gatewayd.BenchmarkQuarantine is the rest of the way.
func BenchmarkQuarantineByRule(b *testing.B) {
	var all []time.Duration
	for b.Loop() {
		b.StopTimer()
		l := believed(b, "rules: [{name: strict, when: 'failures > 0', then: [quarantine]}]", nil)
		l.gatewayd.mu.Lock()
		l.gatewayd.told = make(chan *portcullisv1.SetPhaseRequest, 64)
		told := l.gatewayd.told
		l.gatewayd.mu.Unlock()
		b.StartTimer()
		l.machine.setOnce("procs", "tampered")
		for p := range told {
			if p.Phase == portcullisv1.Phase_PHASE_QUARANTINE {
				break
			}
		}
		at := time.Now()
		b.StopTimer()
		_, found := l.await(0, "finding", nil)
		first, err := time.Parse(time.RFC3339Nano, found["time"].(string))
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, at.Sub(first))
		l.stop()
		b.StartTimer()
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "ms-finding-to-gatewayd-median")
	b.ReportMetric(float64(all[len(all)-1].Microseconds())/1000, "ms-worst")
}
