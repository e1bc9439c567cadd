package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis/attestserver/policy"
	"portcullis/internal/event"
)

const goodPolicy = "rules: [{name: a, when: banned, then: [report]}]"

// Each look at the file, and what it puts in force.
func TestPolicyFileIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	var out bytes.Buffer
	f := &policyFile{path: path, events: event.NewJSON(&out, "attestd", time.Now)}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(goodPolicy)
	if p := f.first(); p.Name != path {
		t.Fatalf("%v", p)
	}
	const two = "rules:\n  - {name: a, when: banned, then: [report]}\n  - {name: b, when: banned, then: [reboot]}\n"
	for i, step := range []struct {
		write, remove, asked bool
		text                 string
		rules                int    // of the policy that is put in force; 0: none is
		told                 string // the events of this look hold it; "": no event
	}{
		{},
		{write: true, text: two},          // somebody may be writing it
		{rules: 2, told: "policy.loaded"}, // as the look before
		{},                                // and stays
		{write: true, text: "rules:\n  - {name: a, when: ba"}, // half written
		{write: true, text: two + "#"},                        // and now whole
		{rules: 2, told: "policy.loaded"},
		{write: true, text: "rules: [{name: a, when: baned, then: [report]}]"},
		{told: "policy.refused"}, // with a mistake
		{},                       // which is told once
		{remove: true, told: "no such file"},
		{},
		{write: true, text: two},
		{rules: 2, told: "policy.loaded"},
		{write: true, text: goodPolicy, asked: true, rules: 1, told: "policy.loaded"}, // SIGHUP does not wait
		{asked: true, rules: 1, told: "policy.loaded"},
		{write: true, text: "rules: 1", asked: true, told: "policy.refused"},
	} {
		if step.write {
			write(step.text)
		}
		if step.remove {
			os.Remove(path)
		}
		out.Reset()
		p, rules := f.look(step.asked), 0
		if p != nil {
			rules = len(p.Rules)
		}
		if rules != step.rules || !strings.Contains(out.String(), step.told) || (step.told == "") != (out.Len() == 0) {
			t.Errorf("look %d: %d rules, want %d; events %q, want %q", i, rules, step.rules, out.String(), step.told)
		}
	}
}

// SIGHUP to the program itself: a good policy is taken over, a bad one told, and it goes on.
func TestHangupReadsThePolicyAgain(t *testing.T) {
	file := configFile(t)
	own := filepath.Join(filepath.Dir(file), "policy.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, "  policy_file: "+own+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(own, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(goodPolicy)
	c := attestd("--config", file)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	lines := bufio.NewScanner(out)
	await := func(want string) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), want) {
				return
			}
		}
		t.Fatalf("attestd has ended without %q", want)
	}
	await(`"event":"policy.loaded"`)
	await(`"event":"ready"`)
	write("rules: [{name: a, when: baned, then: [report]}]")
	c.Process.Signal(syscall.SIGHUP)
	await(`"event":"policy.refused"`)
	write(policy.DefaultText())
	await(`"event":"policy.loaded"`) // by its looks alone
	write(goodPolicy)
	c.Process.Signal(syscall.SIGHUP)
	await(`"event":"policy.loaded"`)
	c.Process.Signal(syscall.SIGTERM)
	if err := c.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}
