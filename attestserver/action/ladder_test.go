package action

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/policy"
)

// Each rung is tried in the configured order until the PC has really gone down.
func TestRebootLadder(t *testing.T) {
	booted := func(r *rig) func() { return func() { r.session = two } }
	dark := func(r *rig) func() { return func() { r.carrier, r.agent = false, false; r.losses++ } }
	for _, tc := range []struct {
		name   string
		setup  func(*rig)
		did    []string
		result string
		detail string
	}{
		{"the agent does it", func(r *rig) { r.on["agent-reboot"] = booted(r) }, []string{"agent-reboot"}, ResultDone, "agent: a new boot session"},
		{"the agent says yes and does nothing", func(r *rig) { r.on["button_reset"] = booted(r) },
			[]string{"agent-reboot", "button_reset"}, ResultDone, "relay-reset"},
		{"no agent", func(r *rig) { r.agent = false; r.on["button_reset"] = booted(r) }, []string{"button_reset"}, ResultDone, "relay-reset"},
		{"the reset button is not wired", func(r *rig) {
			r.refuse["button_reset"] = errors.New("pins-not-wired")
			r.on["button_power"] = booted(r)
		}, []string{"agent-reboot", "button_reset", "button_force_off", "button_power"}, ResultDone, "relay-power"},
		{"switched off and woken by the packet", func(r *rig) {
			r.on["button_force_off"] = dark(r)
			r.on["wake"] = booted(r)
		}, []string{"agent-reboot", "button_reset", "button_force_off", "button_power", "wake"}, ResultDone, "wake"},
		{"only the hook", func(r *rig) { r.on["hook_verb_reset"] = booted(r) },
			[]string{"agent-reboot", "button_reset", "button_force_off", "button_power", "wake", "hook_verb_reset"}, ResultDone, "hook"},
		{"nothing helps", func(r *rig) {}, []string{"agent-reboot", "button_reset", "button_force_off", "button_power", "wake", "hook_verb_reset"}, ResultFailed, "hook: no boot request within"},
		{"a flicker of the cable is no reboot", func(r *rig) {
			r.on["agent-reboot"] = func() { r.agent = false; r.losses++ }
			r.on["button_reset"] = booted(r)
		},
			[]string{"agent-reboot", "button_reset"}, ResultDone, "relay-reset"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig()
			tc.setup(r)
			e := newEngine(t, r)
			e.fire(policy.Reboot)
			end := e.ends(1)[0]
			if end.Result != tc.result || !strings.Contains(end.Detail, tc.detail) || (end.Result == ResultFailed) != (end.Reason == ReasonNoRung) {
				t.Errorf("%+v", end)
			}
			if got := r.words(); !slices.Equal(got, tc.did) {
				t.Errorf("did %v, want %v", got, tc.did)
			}
			// Each rung stands in the journal twice: before and after.
			begun, ended := 0, 0
			for _, rec := range records(t, e.path) {
				if rec.State == stateStep && rec.Result == "" {
					begun++
				} else if rec.State == stateStep {
					ended++
				}
			}
			if begun == 0 || begun != ended {
				t.Errorf("%d rungs begun, %d ended", begun, ended)
			}
		})
	}
}

func TestPowerOffLadder(t *testing.T) {
	for _, tc := range []struct {
		name   string
		setup  func(*rig)
		did    []string
		result string
		detail string
	}{
		{"the cable goes dark", func(r *rig) { r.on["agent-off"] = func() { r.agent, r.carrier = false, false } }, []string{"agent-off"}, ResultDone, "the cable is dark"},
		{"the card keeps the cable up", func(r *rig) { r.on["agent-off"] = func() { r.agent = false } }, []string{"agent-off"}, ResultDone, "neither agent nor boot request"},
		{"it boots instead", func(r *rig) {
			r.on["agent-off"] = func() { r.agent, r.session = false, two }
			r.on["button_force_off"] = func() { r.carrier = false }
		}, []string{"agent-off", "button_force_off"}, ResultDone, "relay-power"},
		{"nothing helps", func(*rig) {}, []string{"agent-off", "button_force_off", "hook_verb_off"}, ResultFailed, "still there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig()
			tc.setup(r)
			e := newEngine(t, r)
			e.fire(policy.PowerOff)
			if end := e.ends(1)[0]; end.Result != tc.result || !strings.Contains(end.Detail, tc.detail) {
				t.Errorf("%+v", end)
			}
			if got := r.words(); !slices.Equal(got, tc.did) {
				t.Errorf("did %v, want %v", got, tc.did)
			}
		})
	}
}

func TestLadderWithoutRungsSaysSo(t *testing.T) {
	r := newRig()
	e := r.engine(t, t.TempDir()+"/j", func(o *Options) { o.Ladder = Ladder{} })
	e.fire(policy.Reboot)
	if end := e.ends(1)[0]; end.Result != ResultFailed || end.Reason != ReasonNoRung {
		t.Errorf("%+v", end)
	}
}

// Off means off for a while: capacitors empty, memory fades.
func TestRelayPowerWaitsBeforeItSwitchesOn(t *testing.T) {
	r := newRig()
	var off, on time.Time
	r.on["button_force_off"] = func() { off = r.clock.Now() }
	r.on["button_power"] = func() { on = r.clock.Now(); r.session = two }
	e := r.engine(t, t.TempDir()+"/j", func(o *Options) { o.Ladder.Rungs = []Rung{RungRelayPower} })
	e.fire(policy.Reboot)
	e.ends(1)
	if d := on.Sub(off); d < e.o.Ladder.OffTime {
		t.Errorf("off for %s only", d)
	}
}
