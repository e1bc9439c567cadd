package scenario

import (
	"context"
	"fmt"
	"strings"
	"time"

	"portcullis/lab"
)

// attackLimit bounds how long three challenges may take to come, with answers.
const attackLimit = 90 * time.Second

// intruder is a change of the running PC that attestd must find: attack makes it
// and returns the place in the log from which it was there, and a finding of one
// of probes must name it.
type intruder struct {
	name, title string
	attack      func(context.Context, *Stage) (named string, since int, err error)
	probes      []string
}

var intruders = []intruder{
	{"extra-process", "a process from a tmpfs is found and named", extraProcess, []string{"procs", "pmem"}},
	{"changed-binary", "a program of the image replaced by a bind mount is found and named", changedBinary, []string{"procs", "pmem"}},
	{"loaded-module", "a kernel module that the image does not load is found and named", loadedModule, []string{"modules"}},
	{"second-nic", "a second network card plugged in at run time is found and named", secondNIC, []string{"net", "hw"}},
}

func intruderScenes() []Scene {
	var out []Scene
	for _, in := range intruders {
		out = append(out, Scene{Name: in.name, Title: in.title + ", and quarantined within three challenges", Trusted: true, Run: in.run})
	}
	return out
}

// changedBinaryScene is the intruder that says most about the whole chain.
func changedBinaryScene() Scene { return intruderScenes()[1] }

func (in intruder) run(ctx context.Context, s *Stage) error {
	// A reset would keep a card that was plugged in: the next scene gets another machine.
	defer s.PowerCut()
	named, mark, err := in.attack(ctx, s)
	if err != nil {
		return fmt.Errorf("making the attack: %w", err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, attackLimit)
	defer cancel()
	if _, err := s.Log.Wait(ctx, mark, lab.With("verdict", "state", "quarantined")); err != nil {
		return fmt.Errorf("not quarantined: %w; %s", err, s.Why(mark))
	}
	took := time.Since(began)
	challenges := 0
	var found string
	for _, e := range s.Log.Since(mark) {
		if e.Name == "challenge" {
			challenges++
		}
		if e.Name == "finding" && contains(in.probes, e.Text("probe")) && strings.Contains(e.Text("detail"), named) {
			found = e.Text("probe") + " " + e.Text("reason") + ": " + e.Text("detail")
		}
		if e.Name == "verdict" && e.Text("state") == "quarantined" {
			break
		}
	}
	if found == "" {
		return fmt.Errorf("quarantined, but no finding of %s names %q: %s", strings.Join(in.probes, " or "), named, s.Why(mark))
	}
	if challenges > 3 {
		return fmt.Errorf("it took %d challenges, want at most 3", challenges)
	}
	if _, err := s.Log.Wait(ctx, mark, lab.With("phase", "phase", "quarantine")); err != nil {
		return fmt.Errorf("the gateway did not quarantine: %w", err)
	}
	s.Note("%d challenges, %.1f s: %s", challenges, took.Seconds(), found)
	return nil
}

// command runs a command in the PC and fails where it fails.
func (s *Stage) command(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := s.Exec(ctx, argv...)
	if err != nil {
		return "", err
	}
	if r.Exit != 0 || r.Error != "" {
		return "", fmt.Errorf("%v ended with %d %s: %s%s", argv, r.Exit, r.Error, r.Stdout, r.Stderr)
	}
	return string(r.Stdout), nil
}

func (s *Stage) shell(ctx context.Context, script string) (string, error) {
	return s.command(ctx, "/bin/sh", "-ec", script)
}

// extraProcess runs a program that the image has, but from a place that it has not.
func extraProcess(ctx context.Context, s *Stage) (string, int, error) {
	_, err := s.shell(ctx, "cp /usr/bin/sleep /tmp/intruder; /tmp/intruder 3600 >/dev/null 2>&1 &")
	return "/tmp/intruder", s.Log.Mark(), err
}

// changedBinary lays a changed copy over a program of the image and runs it under
// its good name. One byte at its end is all that differs.
func changedBinary(ctx context.Context, s *Stage) (string, int, error) {
	_, err := s.shell(ctx, "cp /usr/bin/sleep /run/changed; printf x >> /run/changed; "+
		"mount --bind /run/changed /usr/bin/sleep; /usr/bin/sleep 3600 >/dev/null 2>&1 &")
	return "sleep", s.Log.Mark(), err
}

func loadedModule(ctx context.Context, s *Stage) (string, int, error) {
	_, err := s.shell(ctx, "modprobe dummy")
	return "dummy", s.Log.Mark(), err
}

const secondMAC = "52:54:00:de:ad:01"

// secondNIC plugs a card into the running machine and waits until the PC has seen
// it. It may be found while that is waited for.
func secondNIC(ctx context.Context, s *Stage) (string, int, error) {
	mark := s.Log.Mark()
	if err := s.PC().AddNIC(ctx, secondMAC); err != nil {
		return "", 0, err
	}
	err := until(ctx, 30*time.Second, "the second card in the PC", func() (bool, error) {
		looked := s.Log.Mark()
		out, err := s.shell(ctx, "cat /sys/class/net/*/address")
		seen := strings.Contains(out, secondMAC)
		if !seen {
			mark = looked
		}
		return seen, err
	})
	return secondMAC, mark, err
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
