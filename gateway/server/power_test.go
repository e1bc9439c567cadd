package server

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	v1 "portcullis/api/portcullis/v1"
)

// powerCut ends the Pi: gatewayd's last words are not written, and the kernel forgets.
func (f *fixture) powerCut() {
	f.crash()
	f.newKernel()
}

func (f *fixture) newKernel() {
	f.pi += "+"
	f.kernel.mu.Lock()
	f.kernel.rs = nil
	f.kernel.mu.Unlock()
}

// A quarantine that was answered and is on no disk when the Pi loses its power is not
// undone by that: without a word that gatewayd ended in order, the PC has to boot anew.
func TestAttack_PowerCutDoesNotForgetAQuarantine(t *testing.T) {
	f, back := quarantinedWithoutDisk(t)
	f.powerCut()
	os.RemoveAll(f.dir)
	back()
	f.start()
	f.cameBackAs(v1.Phase_PHASE_QUARANTINE)
	if err := f.phase(one, v1.Phase_PHASE_RUN, 60_000); err == nil {
		t.Error("the session runs again")
	}
	if !strings.Contains(f.log.String(), `"reason":"power-lost"`) {
		t.Errorf("not told:\n%s", f.log)
	}
	f.stop() // in order: it stays
	f.start()
	if s := f.status(); s.Phase != v1.Phase_PHASE_QUARANTINE {
		t.Errorf("then as %s", s.Phase)
	}
	f.must(f.boot(two))
	f.must(f.phase(two, v1.Phase_PHASE_RUN, 60_000))
}

// The disk fails while the PC boots, so that the file says no more than that. No run is answered without
// it, however often it is asked for, nor a quarantine: a power cut would forget both.
func TestAttack_NothingIsAnsweredOfASessionThatTheFileHasInItsBoot(t *testing.T) {
	for _, from := range []v1.Phase{v1.Phase_PHASE_RUN, v1.Phase_PHASE_ATTEST} {
		f := newFixture(t)
		f.must(f.boot(one))
		away := f.dir + ".away"
		f.must(os.Rename(f.dir, away))
		ttl := 60_000 * bit(from == v1.Phase_PHASE_RUN)
		for range 3 {
			if err := f.phase(one, from, ttl); err == nil {
				t.Errorf("%s is answered and on no disk", from)
			}
		}
		f.wire.mu.Lock()
		if f.wire.routing {
			t.Errorf("%s: the routing is open", from)
		}
		f.wire.mu.Unlock()
		for range 2 {
			if err := f.phase(one, v1.Phase_PHASE_QUARANTINE, 0); err == nil {
				t.Errorf("a quarantine out of %s is answered and on no disk", from)
			}
		}
		if s := f.status(); s.Phase != v1.Phase_PHASE_QUARANTINE {
			t.Errorf("the disk held the quarantine up: %s", s.Phase)
		}
		if !strings.Contains(f.log.String(), `"phase":"quarantine"`) {
			t.Errorf("not told:\n%s", f.log)
		}
		f.must(os.Rename(away, f.dir))
		f.must(f.phase(one, v1.Phase_PHASE_QUARANTINE, 0))
		f.powerCut()
		f.start()
		f.cameBackAs(v1.Phase_PHASE_QUARANTINE)
	}
}

// A run whose session the file knows goes on without the disk: it is renewed, and a
// quarantine is answered at once.
func TestARunGoesOnWithoutTheDisk(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	f.must(f.phase(one, v1.Phase_PHASE_ATTEST, 0))
	f.must(os.Rename(f.dir, f.dir+".away"))
	if err := f.phase(one, v1.Phase_PHASE_RUN, 60_000); err == nil {
		t.Error("the first run does not try the disk")
	}
	f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
	f.must(f.phase(one, v1.Phase_PHASE_QUARANTINE, 0))
	f.must(os.Rename(f.dir+".away", f.dir))
	f.powerCut()
	f.start()
	f.cameBackAs(v1.Phase_PHASE_QUARANTINE)
}

// A Pi that is shut down in order, or a gatewayd that is killed under a kernel that goes on,
// costs the PC no boot; nor does a power cut while it boots.
func TestOnlyALostPowerCostsABoot(t *testing.T) {
	for name, c := range map[string]struct {
		from v1.Phase
		end  func(*fixture)
		want v1.Phase
	}{
		"shut down":                    {v1.Phase_PHASE_RUN, func(f *fixture) { f.stop(); f.newKernel() }, v1.Phase_PHASE_ATTEST},
		"killed":                       {v1.Phase_PHASE_RUN, (*fixture).crash, v1.Phase_PHASE_ATTEST},
		"no power":                     {v1.Phase_PHASE_RUN, (*fixture).powerCut, v1.Phase_PHASE_QUARANTINE},
		"booting":                      {v1.Phase_PHASE_BOOT, (*fixture).powerCut, v1.Phase_PHASE_BOOT},
		"shut down, started, no power": {v1.Phase_PHASE_RUN, func(f *fixture) { f.stop(); f.start(); f.powerCut() }, v1.Phase_PHASE_QUARANTINE},
	} {
		f := newFixture(t)
		f.must(f.boot(one))
		if c.from == v1.Phase_PHASE_RUN {
			f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
		}
		c.end(f)
		f.start()
		if s := f.status(); s.Phase != c.want || s.Session != one {
			t.Errorf("%s: came back as %s of %s", name, s.Phase, s.Session)
		}
	}
}

// A gatewayd that cannot begin, and a Pi that is then shut down in order: nobody was answered in
// between, so the session goes on. What was not closed before is not closed by that.
func TestAStartThatFailsKeepsTheLastWords(t *testing.T) {
	fails := map[string]func(*fixture){
		"no routing": func(f *fixture) {
			f.wire.broken = errors.New("no")
			if _, err := New(f.options()); err == nil {
				f.t.Error("it begins without the routing closed")
			}
			f.wire.broken = nil
		},
		"no socket": func(f *fixture) {
			g, err := New(f.options())
			f.must(err)
			f.must(g.Abandon())
		},
	}
	for name, fail := range fails {
		for _, c := range []struct {
			ended string
			end   func(*fixture)
			want  v1.Phase
		}{
			{"in order", func(f *fixture) { f.stop() }, v1.Phase_PHASE_ATTEST},
			{"killed", (*fixture).crash, v1.Phase_PHASE_QUARANTINE},
		} {
			f := newFixture(t)
			f.must(f.boot(one))
			f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
			c.end(f)
			fail(f)
			f.newKernel()
			f.start()
			if s := f.status(); s.Phase != c.want || s.Session != one {
				t.Errorf("%s, %s before: came back as %s of %s", name, c.ended, s.Phase, s.Session)
			}
		}
	}
}

// A disk that takes nothing keeps gatewayd from its start only where the file would go on saying
// that it is closed. What it finds then is what it would find after a lost power.
func TestAStartWithoutTheDisk(t *testing.T) {
	for name, c := range map[string]struct {
		end   func(*fixture)
		want  v1.Phase // at the start without the disk and at each after it
		again v1.Phase // after a lost power
	}{
		"killed":         {(*fixture).crash, v1.Phase_PHASE_ATTEST, v1.Phase_PHASE_QUARANTINE},
		"no power":       {(*fixture).powerCut, v1.Phase_PHASE_QUARANTINE, v1.Phase_PHASE_QUARANTINE},
		"ended in order": {func(f *fixture) { f.stop() }, v1.Phase_PHASE_UNSPECIFIED, v1.Phase_PHASE_UNSPECIFIED},
		"of before":      {func(f *fixture) { f.stop(); f.asOfBefore() }, v1.Phase_PHASE_UNSPECIFIED, v1.Phase_PHASE_UNSPECIFIED},
	} {
		f := newFixture(t)
		f.must(f.boot(one))
		f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
		c.end(f)
		f.readOnly()
		if c.want == v1.Phase_PHASE_UNSPECIFIED {
			if _, err := New(f.options()); err == nil {
				t.Errorf("%s: it begins with a file that says more than is true", name)
			}
			continue
		}
		for range 2 {
			f.start()
			if s := f.status(); s.Phase != c.want || s.Session != one {
				t.Errorf("%s: came back as %s of %s", name, s.Phase, s.Session)
			}
			f.crash()
		}
		if !strings.Contains(f.log.String(), `"gateway.failed"`) {
			t.Errorf("%s: not told", name)
		}
		f.newKernel()
		f.start()
		if s := f.status(); s.Phase != c.again {
			t.Errorf("%s: then as %s", name, s.Phase)
		}
		f.stop()
	}
}

// readOnly puts the state file where it can be read and nothing can be put beside it.
func (f *fixture) readOnly() {
	f.t.Helper()
	path := filepath.Join(f.dir, "state.json")
	f.must(unix.Mount(f.dir, f.dir, "", unix.MS_BIND, ""))
	f.t.Cleanup(func() { unix.Unmount(f.dir, unix.MNT_DETACH) })
	f.must(unix.Mount("", f.dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := os.ReadFile(path); err != nil {
		f.t.Fatal(err)
	}
}

// A gatewayd of before the two keys left a file that says neither in which boot it was written nor
// that it is the last. An update under a kernel that goes on costs the PC no boot: its tables
// are there. After a boot of the Pi nobody can say how the former one ended.
func TestFileOfBeforeTheBootIDs(t *testing.T) {
	for name, c := range map[string]struct {
		booted bool
		want   v1.Phase
	}{
		"gatewayd updated and restarted": {false, v1.Phase_PHASE_ATTEST},
		"the Pi booted":                  {true, v1.Phase_PHASE_QUARANTINE},
	} {
		f := newFixture(t)
		f.must(f.boot(one))
		f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
		f.stop()
		f.asOfBefore()
		if c.booted {
			f.newKernel()
		}
		f.start()
		if s := f.status(); s.Phase != c.want || s.Session != one {
			t.Errorf("%s: came back as %s of %s", name, s.Phase, s.Session)
		}
		if strings.Contains(f.log.String(), `"power-lost"`) || strings.Contains(f.log.String(), `"reason":"boot-unknown"`) != c.booted {
			t.Errorf("%s: told:\n%s", name, f.log)
		}
		f.stop() // it has written both keys now
		f.start()
		if s := f.status(); s.Phase != c.want {
			t.Errorf("%s: then as %s", name, s.Phase)
		}
	}
}

// asOfBefore takes out of the state file what a gatewayd of before did not write.
func (f *fixture) asOfBefore() {
	f.t.Helper()
	path := filepath.Join(f.dir, "state.json")
	b, err := os.ReadFile(path)
	f.must(err)
	var m map[string]any
	f.must(json.Unmarshal(b, &m))
	delete(m, "boot")
	delete(m, "closed")
	b, err = json.Marshal(m)
	f.must(err)
	f.must(os.WriteFile(path, b, 0o600))
}
