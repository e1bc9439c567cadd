package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/attestserver/action"
	"portcullis/attestserver/policy"
	"portcullis/internal/config"
	"portcullis/internal/event"
)

// A policy with a mistake, or none where one is configured, leaves the built-in one in force.
func TestBadPolicyLeavesTheBuiltinOneInForce(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct{ file, want, told string }{
		"none":      {"", policy.Builtin, ""},
		"good":      {write("good", "rules: [{name: a, when: banned, then: [report]}]"), filepath.Join(dir, "good"), ""},
		"mistake":   {write("bad", "rules:\n  - {name: a, when: baned, then: [report]}"), policy.Builtin, "bad:2"},
		"not there": {filepath.Join(dir, "none"), policy.Builtin, "no such file"},
	} {
		var out bytes.Buffer
		p := (&policyFile{path: tc.file, events: event.NewJSON(&out, "attestd", time.Now)}).first()
		if p.Name != tc.want || !strings.Contains(out.String(), tc.told) || strings.Contains(out.String(), "policy.refused") != (tc.told != "") {
			t.Errorf("%s: %s; %s", name, p.Name, out.String())
		}
	}
}

func TestEveryRungOfTheConfigurationIsKnown(t *testing.T) {
	c, err := config.Parse("p", []byte(strings.Replace(config.Example("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="), "ladder: [agent]", "ladder: [agent, relay-reset, relay-power, wake, hook]", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Attest.Ladder.Rungs) != len(action.Rungs) {
		t.Errorf("%v, known are %v", c.Attest.Ladder.Rungs, action.Rungs)
	}
	for i, r := range action.Rungs {
		if c.Attest.Ladder.Rungs[i] != string(r) {
			t.Errorf("%s is %s", c.Attest.Ladder.Rungs[i], r)
		}
	}
}
