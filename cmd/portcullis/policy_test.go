package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/action"
	"portcullis/attestserver/policy"
	"portcullis/internal/cli"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
)

func policyCLI(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{policyCommand(), powerCommand()}}
	code = cli.Run(context.Background(), root, &cli.IO{Out: &o, Err: &e}, args)
	return code, o.String(), e.String()
}

func TestPolicyCommands(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.yaml", policy.DefaultText())
	bad := write("bad.yaml", "rules:\n  - {name: a, when: baned, then: [report]}\n")
	claims := write("claims.yaml", "state: suspect\nfindings: [{probe: procs, reason: procs-root, class: fatal, age: 2s}]\n")
	cases := write("cases.yaml", "cases:\n  - {name: x, claims: {state: suspect}, expect: [suspect]}\n")
	wrong := write("wrong.yaml", "cases:\n  - {name: x, claims: {state: trusted}, expect: [suspect]}\n")
	record := recordedAction(t, dir)
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"policy show", 0, "name: quarantined"},
		{"policy show --claims", 0, "session_age  google.protobuf.Duration"},
		{"policy show --claims --json", 0, `"claims":[{"name":"state"`},
		{"policy check " + good, 0, "valid, 4 rules"},
		{"policy check --json " + good, 0, `"valid":true`},
		{"policy check " + bad, 1, "bad.yaml:2: rules[0].when"},
		{"policy check --json " + bad, 1, `"line":2`},
		{"policy check", 2, "takes one file"},
		{"policy check " + dir + "/none", 1, "no such file"},
		{"policy test " + cases, 0, "1 cases, 0 failed"},
		{"policy test --policy " + good + " " + wrong, 1, "FAIL x: fired [], expected [suspect]"},
		{"policy test --json " + wrong, 1, `"ok":false`},
		{"policy test --policy " + bad + " " + cases, 1, "undeclared"},
		{"policy explain " + claims, 0, "suspect (line"},
		{"policy explain --json " + claims, 0, `"rule":"suspect"`},
		{"policy explain --journal " + record, 0, "reboot by rule fatal"},
		{"policy explain --journal " + record + " --id 00", 1, "no such action"},
		{"policy explain", 2, "--journal"},
		{"policy explain " + claims + " --journal " + record, 2, "--journal"},
		{"power serve", 2, "relay, hook"},
		{"power serve lever", 2, "relay, hook"},
	} {
		code, out, errOut := policyCLI(strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(out+errOut, tc.says) {
			t.Errorf("%s: %d\n%s%s", tc.args, code, out, errOut)
		}
		if strings.Contains(tc.args, "--json") && !json.Valid([]byte(out)) {
			t.Errorf("%s: not JSON: %s", tc.args, out)
		}
	}
}

// recordedAction makes a journal with one action that nothing carried out.
func recordedAction(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "actions.journal")
	e, err := action.Open(action.Options{Journal: path, PC: nobody{}, Gateway: portcullisv1connect.NewGatewayClient(nil, "http://x"),
		Events: event.NewJSON(&bytes.Buffer{}, "attestd", time.Now), Clock: clock.Real{}, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	rule := policy.Rule{Name: "fatal", Then: []policy.Action{policy.Reboot}}
	if err := e.Post(policy.Firing{Rule: &rule, Claims: policy.Claims{State: "suspect"}, Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

type nobody struct{}

func (nobody) Session() string                                    { return "" }
func (nobody) Agent() bool                                        { return false }
func (nobody) Down(context.Context, [16]byte, string, bool) error { return nil }

// Without a command or a wired relay the service ends at once, and well.
func TestPowerServeWithoutHands(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "portcullis.yaml")
	if err := os.WriteFile(conf, []byte(config.Example("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")), 0o600); err != nil {
		t.Fatal(err)
	}
	wires := filepath.Join(dir, "tamper.yaml")
	if err := os.WriteFile(wires, []byte("schema: portcullis/tamper/v1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"hook", "relay"} {
		if code, out, errOut := policyCLI("power", "serve", part, "--config", conf, "--pins", wires); code != 0 || !strings.Contains(out, "power.unwired") {
			t.Errorf("%s: %d %s %s", part, code, out, errOut)
		}
	}
}
