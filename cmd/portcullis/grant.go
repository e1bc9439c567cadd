package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/gateway/policy"
	"portcullis/internal/cli"
	"portcullis/internal/config"
	"portcullis/internal/rpc"
)

func init() { commands = append(commands, grantCommand()) }

func grantCommand() *cli.Command {
	return &cli.Command{
		Name: "grant", Summary: "Open one connection of the PC for a while, see what is open, close it.",
		Sub: []*cli.Command{grantAddCommand(), grantListCommand(), grantRevokeCommand()},
	}
}

// grantReport is the --json shape of one grant.
type grantReport struct {
	ID       string    `json:"id"`
	Task     string    `json:"task"`
	To       string    `json:"to"`
	NotAfter time.Time `json:"not_after"`
}

func grantAddCommand() *cli.Command {
	c := &cli.Command{
		Name: "grant add", Args: "--to HOST:PORT/PROTO --for TIME --task ID",
		Summary: "Let the PC reach one address, port and protocol. HOST is an IPv4 address: names and IPv6 are not supported yet.\n" +
			"It passes only while the PC is trusted, ends by itself, and its connections end with it.",
		Example: "portcullis grant add --to 203.0.113.10:443/tcp --for 10m --task nightly-report\n" +
			"portcullis grant add --pc rack-1 --to 203.0.113.10:443/tcp --for 10m --task nightly-report",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		to := fs.String("to", "", "where: IPv4 address, port, tcp or udp, for instance 203.0.113.10:443/tcp")
		life := fs.Duration("for", 0, "how long: 1s to 168h")
		task := fs.String("task", "", "the task that needs it, for the record")
		of := newGrantFlags(fs)
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 || *to == "" || *life == 0 || *task == "" {
			return cli.Usagef("grant add needs --to, --for and --task, and no other words")
		}
		t, err := policy.ParseTarget(*to)
		if err != nil {
			return cli.Usagef("--to: %v", err)
		}
		gateway, err := of.gateway()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		r, err := gateway.AddGrant(ctx, connect.NewRequest(&v1.AddGrantRequest{
			Task: *task, Protocol: t.Protocol, Address: t.Address.String(), Port: uint32(t.Port), DurationMs: life.Milliseconds()}))
		if err != nil {
			return fmt.Errorf("grant add: %w", err)
		}
		return printGrants(stdio, *of.asJSON, []*v1.Grant{r.Msg.Grant}, true)
	}
	return c
}

func grantListCommand() *cli.Command {
	c := &cli.Command{
		Name: "grant list", Args: "[--json]", Summary: "List the grants that have not ended.",
		Example: "portcullis grant list\nportcullis grant list --json | jq -r '.[].id'",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		of := newGrantFlags(fs)
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 {
			return cli.Usagef("grant list takes no words")
		}
		gateway, err := of.gateway()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		r, err := gateway.ListGrants(ctx, connect.NewRequest(&v1.ListGrantsRequest{}))
		if err != nil {
			return fmt.Errorf("grant list: %w", err)
		}
		return printGrants(stdio, *of.asJSON, r.Msg.Grants, false)
	}
	return c
}

func grantRevokeCommand() *cli.Command {
	c := &cli.Command{
		Name: "grant revoke", Args: "ID", Summary: "End a grant now; its open connections are cut.",
		Example: "portcullis grant revoke g-k3v7q2m5x4jw6n2a",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		of := newGrantFlags(fs)
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 {
			return cli.Usagef("grant revoke needs one grant id; see 'portcullis grant list'")
		}
		gateway, err := of.gateway()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if _, err := gateway.RevokeGrant(ctx, connect.NewRequest(&v1.RevokeGrantRequest{Id: words[0]})); err != nil {
			return fmt.Errorf("grant revoke: %w", err)
		}
		if *of.asJSON {
			return json.NewEncoder(stdio.Out).Encode(map[string]string{"revoked": words[0]})
		}
		fmt.Fprintf(stdio.Out, "%s has ended\n", words[0])
		return nil
	}
	return c
}

// sharedFlags are those of commands that ask one service.
func sharedFlags(fs *flag.FlagSet) (runDir *string, asJSON *bool) {
	return fs.String("run-dir", "/run/portcullis", "where the services' sockets are"), fs.Bool("json", false, "JSON output")
}

// grantFlags are those of all commands about grants.
type grantFlags struct {
	runDir, pc *string
	asJSON     *bool
}

func newGrantFlags(fs *flag.FlagSet) grantFlags {
	runDir, asJSON := sharedFlags(fs)
	return grantFlags{runDir, pcFlag(fs), asJSON}
}

// gateway is the gatewayd of the PC that is meant.
func (f grantFlags) gateway() (portcullisv1connect.GatewayClient, error) {
	c := config.Config{RunDir: *f.runDir}
	if *f.pc != "" {
		if err := c.ForPC(*f.pc); err != nil {
			return nil, cli.Usagef("--pc: %v", err)
		}
	}
	return portcullisv1connect.NewGatewayClient(rpc.Client(filepath.Join(c.RunDir, rpc.GatewaySocket)), rpc.BaseURL), nil
}

// printGrants writes a list, or with one the object alone.
func printGrants(stdio *cli.IO, asJSON bool, list []*v1.Grant, one bool) error {
	reports := []grantReport{}
	for _, g := range list {
		reports = append(reports, grantReport{g.Id, g.Task, fmt.Sprintf("%s:%d/%s", g.Address, g.Port, g.Protocol), time.UnixMilli(g.NotAfterMs).UTC()})
	}
	if asJSON && one {
		return json.NewEncoder(stdio.Out).Encode(reports[0])
	}
	if asJSON {
		return json.NewEncoder(stdio.Out).Encode(reports)
	}
	for _, r := range reports {
		fmt.Fprintf(stdio.Out, "%s  %-26s until %s  task %s\n", r.ID, r.To, r.NotAfter.Format(time.RFC3339), r.Task)
	}
	if len(reports) == 0 {
		fmt.Fprintln(stdio.Out, "nothing is granted")
	}
	return nil
}
