package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/cli"
	"portcullis/internal/config"
	"portcullis/internal/rpc"
)

// grants is a gateway that only keeps grants.
type grants struct {
	portcullisv1connect.UnimplementedGatewayHandler
	list []*v1.Grant
}

func (g *grants) AddGrant(_ context.Context, r *connect.Request[v1.AddGrantRequest]) (*connect.Response[v1.AddGrantResponse], error) {
	x := &v1.Grant{Id: "g-one", Task: r.Msg.Task, Protocol: r.Msg.Protocol, Address: r.Msg.Address, Port: r.Msg.Port, NotAfterMs: 1_800_000_000_000 + r.Msg.DurationMs}
	g.list = append(g.list, x)
	return connect.NewResponse(&v1.AddGrantResponse{Grant: x}), nil
}
func (g *grants) ListGrants(context.Context, *connect.Request[v1.ListGrantsRequest]) (*connect.Response[v1.ListGrantsResponse], error) {
	return connect.NewResponse(&v1.ListGrantsResponse{Grants: g.list}), nil
}
func (g *grants) RevokeGrant(_ context.Context, r *connect.Request[v1.RevokeGrantRequest]) (*connect.Response[v1.RevokeGrantResponse], error) {
	if r.Msg.Id != "g-one" {
		return nil, connect.NewError(connect.CodeNotFound, nil)
	}
	g.list = nil
	return connect.NewResponse(&v1.RevokeGrantResponse{}), nil
}

// grantCLI runs the program's command tree against a gateway and returns what it says.
func grantCLI(t *testing.T) func(args ...string) (code int, out, errOut string) {
	t.Helper()
	return grantCLIOf(t, "")
}

// grantCLIOf is grantCLI with the gateway of one PC of several.
func grantCLIOf(t *testing.T, pc string) func(args ...string) (code int, out, errOut string) {
	t.Helper()
	dir := t.TempDir()
	c := config.Config{RunDir: dir}
	if pc != "" {
		if err := c.ForPC(pc); err != nil {
			t.Fatal(err)
		}
	}
	l, err := rpc.Listen(filepath.Join(c.RunDir, rpc.GatewaySocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewGatewayHandler(&grants{}))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, l, mux) }()
	t.Cleanup(func() { cancel(); <-done })
	return func(args ...string) (int, string, string) {
		var out, errOut bytes.Buffer
		root := &cli.Command{Sub: []*cli.Command{grantCommand()}}
		args = append([]string{"grant"}, args...)
		code := cli.Run(context.Background(), root, &cli.IO{Out: &out, Err: &errOut}, append(args, "--run-dir", dir))
		return code, out.String(), errOut.String()
	}
}

func TestGrantCommands(t *testing.T) {
	run := grantCLI(t)
	if code, out, _ := run("list"); code != 0 || !strings.Contains(out, "nothing is granted") {
		t.Errorf("list: %d %q", code, out)
	}
	code, out, errOut := run("add", "--to", "203.0.113.10:443/tcp", "--for", "10m", "--task", "report", "--json")
	var one grantReport
	if code != 0 || json.Unmarshal([]byte(out), &one) != nil {
		t.Fatalf("add: %d %q %q", code, out, errOut)
	}
	if want := (grantReport{"g-one", "report", "203.0.113.10:443/tcp", time.UnixMilli(1_800_000_600_000).UTC()}); one != want {
		t.Errorf("add says %+v, want %+v", one, want)
	}
	code, out, _ = run("list", "--json")
	var all []grantReport
	if code != 0 || json.Unmarshal([]byte(out), &all) != nil || len(all) != 1 || all[0] != one {
		t.Errorf("list: %d %q", code, out)
	}
	if code, out, _ := run("revoke", "g-one"); code != 0 || !strings.Contains(out, "g-one has ended") {
		t.Errorf("revoke: %d %q", code, out)
	}
	if code, _, errOut := run("revoke", "g-other"); code != 1 || !strings.Contains(errOut, "not_found") {
		t.Errorf("revoke of nothing: %d %q", code, errOut)
	}
}

// Of several PCs each has a gatewayd of its own, and --pc names it.
func TestGrantOfOnePCOfSeveral(t *testing.T) {
	run := grantCLIOf(t, "rack-1")
	add := []string{"add", "--to", "203.0.113.10:443/tcp", "--for", "10m", "--task", "report"}
	if code, out, errOut := run(append(add, "--pc", "rack-1")...); code != 0 {
		t.Errorf("add: %d %q %q", code, out, errOut)
	}
	if code, out, _ := run("list", "--pc", "rack-1"); code != 0 || !strings.Contains(out, "report") {
		t.Errorf("list: %d %q", code, out)
	}
	for _, pc := range []string{"", "rack-2"} {
		if code, out, _ := run(append(add, "--pc", pc)...); code != 1 {
			t.Errorf("add for %q: %d %q", pc, code, out)
		}
	}
	if code, _, errOut := run("list", "--pc", "../rack-1"); code != 2 || !strings.Contains(errOut, "--pc") {
		t.Errorf("a path: %d %q", code, errOut)
	}
	if code, out, _ := run("revoke", "g-one", "--pc", "rack-1"); code != 0 {
		t.Errorf("revoke: %d %q", code, out)
	}
}

func TestGrantUsage(t *testing.T) {
	run := grantCLI(t)
	for want, args := range map[string][]string{
		"needs --to, --for and --task": {"add", "--to", "203.0.113.10:443/tcp"},
		"not an IPv4 address":          {"add", "--to", "example.org:443/tcp", "--for", "1m", "--task", "t"},
		"host:port/proto":              {"add", "--to", "203.0.113.10:443", "--for", "1m", "--task", "t"},
		"neither tcp nor udp":          {"add", "--to", "203.0.113.10:443/sctp", "--for", "1m", "--task", "t"},
		"one grant id":                 {"revoke"},
		"takes no words":               {"list", "everything"},
	} {
		if code, _, errOut := run(args...); code != 2 || !strings.Contains(errOut, want) {
			t.Errorf("%v: exit %d, %q; want 2 and %q", args, code, errOut, want)
		}
	}
	if code, out, _ := run("add", "--help"); code != 0 || !strings.Contains(out, "IPv6 are not supported yet") || !strings.Contains(out, "Example:") {
		t.Errorf("help: %d %q", code, out)
	}
}
