package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
)

// What is answered before the file is written must not be more open after a crash: the
// tables that the file of before gives are those that were answered.
func TestInvariant04_WhatIsAnsweredBeforeTheDiskOpensNothingAfterACrash(t *testing.T) {
	booted, err := policy.Initial(testPort()).OpenBoot(one, mac, "10.77.0.2")
	if err != nil {
		t.Fatal(err)
	}
	target, err := policy.ParseTarget("203.0.113.10:443/tcp")
	if err != nil {
		t.Fatal(err)
	}
	if booted, _, err = booted.AddGrant("t", target, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	all := []policy.Phase{policy.Idle, policy.Boot, policy.Attest, policy.Run, policy.Quarantine}
	answered := 0
	for _, from := range all {
		before, err := booted.SetPhase(one, from, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range all {
			next, err := before.SetPhase(one, to, time.Minute)
			if err != nil || !shuts(before, next) {
				continue
			}
			answered++
			b, err := encodeState(before, life{})
			if err != nil {
				t.Fatal(err)
			}
			after, _, err := decodeState(testPort(), b)
			if err != nil {
				t.Fatal(err)
			}
			// What a grant has left is the kernel's to count.
			next.Grants, after.Grants = nil, nil
			if got, want := ruleset.Build(after).Dump(), ruleset.Build(next).Dump(); got != want {
				t.Errorf("%s to %s: after a crash the tables are\n%s\nnot\n%s", from, to, got, want)
			}
		}
	}
	if answered != 4 {
		t.Errorf("%d transitions do not wait for the disk, want run and attest to attest and quarantine", answered)
	}
	if next, err := booted.OpenBoot(two, mac, "10.77.0.2"); err != nil || shuts(booted, next) {
		t.Errorf("a new session does not wait for the disk: %v", err)
	}
}

// quarantinedWithoutDisk quarantines a run while nothing can be written; back gives the disk back.
func quarantinedWithoutDisk(t *testing.T) (f *fixture, back func()) {
	t.Helper()
	f = newFixture(t)
	f.must(f.boot(one))
	f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
	f.status()
	away := f.dir + ".away"
	f.must(os.Rename(f.dir, away))
	f.must(f.phase(one, v1.Phase_PHASE_QUARANTINE, 0))
	return f, func() { t.Helper(); f.must(os.Rename(away, f.dir)) }
}

// The answer comes when the run is over; the disk is not asked for its leave.
func TestQuarantineIsAnsweredBeforeTheDisk(t *testing.T) {
	f, back := quarantinedWithoutDisk(t)
	if s := f.status(); s.Phase != v1.Phase_PHASE_QUARANTINE {
		t.Errorf("phase %s", s.Phase)
	}
	if !strings.Contains(f.log.String(), `"gateway.failed"`) || strings.Contains(f.log.String(), `"phase.stored"`) {
		t.Errorf("the disk's failure is not told:\n%s", f.log)
	}
	back()
	f.clock.advance(settleRetry)
	f.eventually("the state is stored", func() bool { return strings.Contains(f.log.String(), `"phase.stored"`) })
	b, err := os.ReadFile(filepath.Join(f.dir, "state.json"))
	if err != nil || !strings.Contains(string(b), `"phase":"quarantine"`) {
		t.Errorf("state %s, %v", b, err)
	}
}

// The disk failed, works again, and gatewayd is stopped before it has tried again: what was
// answered is stored on the way out.
func TestStoppedAfterTheDiskFailedStoresWhatWasAnswered(t *testing.T) {
	f, back := quarantinedWithoutDisk(t)
	f.status() // it has tried
	back()
	f.stop()
	f.start()
	f.cameBackAs(v1.Phase_PHASE_QUARANTINE)
}

// A crash before the disk has it: the port comes back without a run.
func TestCrashBeforeTheDiskComesBackShut(t *testing.T) {
	f, back := quarantinedWithoutDisk(t)
	f.crash()
	os.RemoveAll(f.dir)
	back()
	f.start()
	f.cameBackAs(v1.Phase_PHASE_ATTEST)
}

// Where the kernel refuses the one set, and then the whole tables, nobody is told that it is done.
func TestInvariant04_AQuarantineThatTheKernelRefusesIsNotAnswered(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
	f.kernel.mu.Lock()
	f.kernel.broken = errors.New("no")
	f.kernel.mu.Unlock()
	if err := f.phase(one, v1.Phase_PHASE_QUARANTINE, 0); err == nil {
		t.Error("answered without the kernel")
	}
	f.wire.mu.Lock()
	defer f.wire.mu.Unlock()
	if f.wire.routing {
		t.Error("routing is open still")
	}
}
