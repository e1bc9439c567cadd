package action

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/policy"
	"portcullis/internal/journal"
)

func TestActionsAreRecordedBeforeAndAfter(t *testing.T) {
	r := newRig()
	r.grants = []string{"g-1", "g-2"}
	e := newEngine(t, r)
	e.fire(policy.Report, policy.StopTask, policy.Quarantine)
	for _, end := range e.ends(3) {
		if end.Result != ResultDone {
			t.Errorf("%+v", end)
		}
	}
	if got := r.words(); !slices.Equal(got, []string{"revoke g-1", "revoke g-2", "phase_quarantine"}) {
		t.Errorf("did %v", got)
	}
	open := map[string]bool{}
	for _, rec := range records(t, e.path) {
		switch rec.State {
		case stateBegun:
			if rec.Claims.State != "suspect" || rec.Rule != "r" || rec.Session != one {
				t.Errorf("%+v", rec)
			}
			open[rec.ID] = true
		case stateEnded:
			if !open[rec.ID] {
				t.Errorf("%s ended and had not begun", rec.ID)
			}
			delete(open, rec.ID)
		}
	}
	if len(open) != 0 {
		t.Errorf("open: %v", open)
	}
	if m := e.told("policy.report"); m["rule"] != "r" || m["tier"] != "T0" || m["posture"] != "none" {
		t.Errorf("%v", m)
	}
}

func TestDryRunDoesNothingAndIsRecorded(t *testing.T) {
	r := newRig()
	e := newEngine(t, r)
	e.firing(policy.Rule{Name: "dry", Then: policy.Actions[:5], DryRun: true})
	for _, end := range e.ends(4) {
		if end.Result != ResultDryRun {
			t.Errorf("%+v", end)
		}
	}
	if got := r.words(); got != nil {
		t.Errorf("did %v", got)
	}
	if e.Fired("dry").IsZero() {
		t.Error("its cooldown does not run")
	}
}

func TestGatewayIsAskedUntilItAnswers(t *testing.T) {
	r := newRig()
	r.broken = 7
	e := newEngine(t, r)
	e.fire(policy.Quarantine)
	if end := e.ends(1)[0]; end.Result != ResultDone {
		t.Errorf("%+v", end)
	}
}

// What was meant for a boot session must not hit the next one.
func TestActionsOfAnOldSessionAreSettled(t *testing.T) {
	r := newRig()
	r.session, r.grants = two, []string{"g-new"}
	e := newEngine(t, r)
	e.fire(policy.StopTask, policy.Quarantine, policy.Reboot)
	for _, end := range e.ends(3) {
		if end.Result != ResultSettled || end.Reason != ReasonSessionOver {
			t.Errorf("%+v", end)
		}
	}
	if got := r.words(); got != nil {
		t.Errorf("did %v", got)
	}
}

func TestOneActionAtATimeTakesThePCDown(t *testing.T) {
	r := newRig()
	r.hang = make(chan struct{})
	r.on["agent-reboot"] = func() { r.session = two }
	e := newEngine(t, r)
	e.fire(policy.Reboot)
	e.fire(policy.PowerOff)
	if end := e.ends(1)[0]; end.Action != policy.PowerOff || end.Reason != ReasonMerged {
		t.Errorf("%+v", end)
	}
	close(r.hang)
	if ends := e.ends(2); ends[1].Result != ResultDone {
		t.Errorf("%+v", ends[1])
	}
}

func TestFullQueueIsToldAndBlocksNobody(t *testing.T) {
	r := newRig()
	path := filepath.Join(t.TempDir(), "j")
	if _, err := Open(r.options(path)); err == nil {
		t.Fatal("opened without events")
	}
	eng := r.engine(t, path, nil)
	eng.stop() // nobody takes from the queues any more; posting must not wait for that
	var err error
	if eng.ledger, err = openLedger(path); err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	for range queueLimit + 1 {
		eng.fire(policy.StopTask)
	}
	if ends := eng.ends(1); len(ends) != 1 || ends[0].Reason != ReasonQueueFull {
		t.Errorf("%d ended, %+v", len(ends), ends[0])
	}
}

// An action that cannot be written down ends the engine: attestd starts anew and
// nothing is believed meanwhile.
func TestJournalThatCannotBeWrittenEndsTheEngine(t *testing.T) {
	r := newRig()
	e, err := Open(func() Options {
		o := r.options(filepath.Join(t.TempDir(), "j"))
		o.Events = newEngine(t, r).o.Events
		return o
	}())
	if err != nil {
		t.Fatal(err)
	}
	e.ledger.journal.Close()
	rule := policy.Rule{Name: "r", Then: []policy.Action{policy.Report}}
	if err := e.Post(policy.Firing{Rule: &rule, Claims: policy.Claims{State: "suspect"}, Time: r.clock.Now()}); err == nil {
		t.Fatal("posted")
	}
	if err := e.Run(t.Context()); err == nil {
		t.Fatal("goes on")
	}
}

// The texts of a hostile PC fill no record: escaped, each byte can become six.
func TestLargestClaimsFitARecord(t *testing.T) {
	r := newRig()
	e := newEngine(t, r)
	evil := strings.Repeat("<", policy.MaxText)
	c := policy.Claims{State: "suspect", Session: one, Image: evil, Reason: evil}
	for range policy.MaxFindings {
		c.Findings = append(c.Findings, policy.Finding{Probe: evil, Reason: evil[:64], Class: "fatal", Detail: evil})
		c.Warnings, c.Tasks = append(c.Warnings, evil), append(c.Tasks, evil[:64])
	}
	rule := policy.Rule{Name: "r", Then: []policy.Action{policy.Report}}
	if err := e.Post(policy.Firing{Rule: &rule, Claims: c, Time: r.clock.Now()}); err != nil {
		t.Fatal(err)
	}
	e.ends(1)
}

func TestAnEarlierLifesActionsAreTakenUp(t *testing.T) {
	for _, tc := range []struct {
		name    string
		session string // after the restart
		want    string
		result  string
	}{
		{"the PC is still there", one, "button_reset", ResultDone},
		{"it has rebooted meanwhile", two, "", ResultSettled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig()
			path := filepath.Join(t.TempDir(), "j")
			l, err := openLedger(path)
			if err != nil {
				t.Fatal(err)
			}
			id := ID{1}.String()
			at := r.clock.now.UTC().Format(timeForm)
			for _, rec := range []Record{
				{Time: at, ID: id, State: stateBegun, Rule: "r", Action: policy.Reboot, Session: one, Claims: &policy.Claims{State: "suspect"}},
				{Time: at, ID: id, State: stateStep, Rung: string(RungAgent)},
				{Time: at, ID: id, State: stateStep, Rung: string(RungAgent), Result: ResultFailed},
				{Time: at, ID: id, State: stateStep, Rung: string(RungRelayReset)}, // the power of the Pi went here
			} {
				if err := l.write(rec); err != nil {
					t.Fatal(err)
				}
			}
			l.journal.Close()
			r.session = tc.session
			r.on["button_reset"] = func() { r.session = two }
			e := r.engine(t, path, nil)
			if !e.Fired("r").Equal(r.clock.now.Truncate(time.Millisecond)) && e.Fired("r").IsZero() {
				t.Error("the cooldown is forgotten")
			}
			if end := e.ends(1)[0]; end.Result != tc.result || end.ID != id {
				t.Errorf("%+v", end)
			}
			if got := strings.Join(r.words(), " "); got != tc.want {
				t.Errorf("did %q, want %q: the rung that was interrupted is done again, those before are not", got, tc.want)
			}
			e.told("action.resumed")
			e.stop()
			again := r.engine(t, path, nil)
			if n := len(again.ledger.left()); n != 0 {
				t.Errorf("%d actions are open in the third life", n)
			}
		})
	}
}

func TestBadRecordsAreRefused(t *testing.T) {
	id, at := ID{1}.String(), time.Unix(0, 0).UTC().Format(timeForm)
	for _, s := range []string{"", "{}", `{"id":"x"}`, `{"id":"` + id + `"}`, `{"id":"` + id + `","time":"` + at + `","state":"lost"}`,
		`{"id":"` + id + `","time":"` + at + `","state":"begun"}`, `{"id":"` + id + `","time":"` + at + `","state":"begun","claims":{"state":"fine"}}`} {
		if _, err := ParseRecord([]byte(s)); err == nil {
			t.Errorf("%s: accepted", s)
		}
	}
	path := filepath.Join(t.TempDir(), "j")
	j, _, err := journal.Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	j.Append([]byte("{}"))
	j.Close()
	if _, err := openLedger(path); err == nil {
		t.Error("a journal of something else is taken")
	}
}

func TestLaddersAreChecked(t *testing.T) {
	for _, l := range []Ladder{{Rungs: []Rung{"jump"}, Within: 1}, {Rungs: []Rung{RungHook, RungHook}, Within: 1}, {Rungs: Rungs}} {
		r := newRig()
		o := r.options(filepath.Join(t.TempDir(), "j"))
		o.Ladder = l
		o.Events = newEngine(t, r).o.Events
		if _, err := Open(o); err == nil {
			t.Errorf("%+v: accepted", l)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-01T00:00:00.000Z","id":"01000000000000000000000000000000","state":"begun","rule":"r","action":"reboot","session":"s","claims":{"state":"suspect"}}`))
	f.Add([]byte(`{"state":"ended","result":"done"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecord(b)
		if err != nil {
			return
		}
		l := &ledger{open: map[ID]*job{}, fired: map[string]time.Time{}}
		l.remember(r)
		if len(l.left()) != 0 && r.State != stateBegun {
			t.Fatalf("open by %+v", r)
		}
	})
}
