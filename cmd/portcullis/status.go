package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/cli"
	"portcullis/internal/config"
	"portcullis/internal/rpc"
)

func init() { commands = append(commands, statusCommand()) }

func statusCommand() *cli.Command {
	c := &cli.Command{
		Name: "status", Args: "[--run-dir DIR] [--pc NAME] [--json]",
		Summary: "Show what the Pi believes of the PC, why, and what the firewall does. Exit 0 only when the PC is trusted.\n" +
			"Of several PCs a list, and exit 0 only when all are trusted; --pc shows one of them.",
		Example: "portcullis status\nportcullis status --pc rack-1\nportcullis status --json | jq .verdict.state",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error { return status(ctx, c, stdio, args) }
	return c
}

// statusReport is the --json shape; a part that does not answer is null and named in errors.
type statusReport struct {
	Verdict *verdictReport `json:"verdict"`
	Session *sessionReport `json:"session"`
	Gateway *gatewayReport `json:"gateway"`
	// Verifier is null also on a Pi whose verifierd was never started.
	Verifier *verifierReport   `json:"verifier"`
	Errors   map[string]string `json:"errors,omitempty"`
}

type verdictReport struct {
	State          string    `json:"state"`
	Tier           string    `json:"tier"`
	Posture        string    `json:"posture"`
	Image          string    `json:"image"`
	Version        uint64    `json:"version"`
	LabImage       bool      `json:"lab_image"`
	NotAfter       time.Time `json:"not_after"`
	Challenges     uint64    `json:"challenges"`
	Failures       uint64    `json:"failures"`
	MaskedBytes    uint64    `json:"ktext_masked_bytes"`
	TextBytes      uint64    `json:"ktext_total_bytes"`
	Warnings       []string  `json:"warnings"`
	Findings       []finding `json:"findings"`
	SessionID      string    `json:"session"`
	EvidenceDigest []byte    `json:"evidence_digest"`
}

type finding struct {
	Time   time.Time `json:"time"`
	Probe  string    `json:"probe"`
	Reason string    `json:"reason"`
	Detail string    `json:"detail"`
}

type sessionReport struct {
	ID       string    `json:"id"`
	MAC      string    `json:"mac"`
	Firmware string    `json:"firmware"`
	State    string    `json:"state"`
	Opened   time.Time `json:"opened"`
	Reason   string    `json:"reason,omitempty"`
}

type gatewayReport struct {
	Phase      string            `json:"phase"`
	Grants     []string          `json:"grants"`
	Bans       []string          `json:"bans"`
	Dropped    map[string]uint64 `json:"dropped"`
	Violations uint64            `json:"violations"`
}

func status(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	runDir := fs.String("run-dir", "/run/portcullis", "where the services' sockets are")
	pc := pcFlag(fs)
	asJSON := fs.Bool("json", false, "one JSON object")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("status takes no words")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if *pc == "" {
		if all := severalPCs(ctx, *runDir); len(all) > 0 {
			return showPCs(stdio, all, *asJSON)
		}
	}
	r := gather(ctx, *runDir, *pc)
	if *asJSON {
		if err := json.NewEncoder(stdio.Out).Encode(r); err != nil {
			return err
		}
	} else {
		printStatus(stdio.Out, r, stdio.Colour)
	}
	if r.Verdict == nil || r.Verdict.State != "trusted" {
		return &cli.ExitError{Code: 1}
	}
	return nil
}

// gather asks the services; pc is "" where there is one PC.
func gather(ctx context.Context, dir, pc string) statusReport {
	r := statusReport{Errors: map[string]string{}}
	attest := portcullisv1connect.NewAttestClient(rpc.Client(filepath.Join(dir, rpc.AttestSocket)), rpc.BaseURL)
	if v, err := attest.GetVerdict(ctx, connect.NewRequest(&v1.GetVerdictRequest{Pc: pc})); err != nil {
		r.Errors["attestd"] = err.Error()
	} else {
		r.Verdict = newVerdict(v.Msg)
	}
	if pc != "" {
		dir = config.PCRunDir(dir, pc)
	}
	boot := portcullisv1connect.NewBootClient(rpc.Client(filepath.Join(dir, rpc.BootSocket)), rpc.BaseURL)
	if s, err := boot.GetSession(ctx, connect.NewRequest(&v1.GetSessionRequest{})); err == nil && s.Msg.Session != nil {
		m := s.Msg.Session
		r.Session = &sessionReport{m.Id, m.Mac, m.Firmware, short(m.State.String(), "SESSION_STATE_"), time.UnixMilli(m.OpenedMs), m.Reason}
	} else if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		r.Errors["pxed"] = err.Error()
	}
	gateway := portcullisv1connect.NewGatewayClient(rpc.Client(filepath.Join(dir, rpc.GatewaySocket)), rpc.BaseURL)
	if g, err := gateway.GetGatewayStatus(ctx, connect.NewRequest(&v1.GetGatewayStatusRequest{})); err != nil {
		r.Errors["gatewayd"] = err.Error()
	} else {
		r.Gateway = newGateway(g.Msg)
	}
	var err error
	if r.Verifier, err = newVerifier(ctx, dir); err != nil {
		r.Errors["verifierd"] = err.Error()
	}
	return r
}

func newVerdict(m *v1.GetVerdictResponse) *verdictReport {
	v := &verdictReport{State: short(m.State.String(), "TRUST_STATE_"), Tier: m.Tier, Posture: m.Posture, Image: m.Image,
		Version: m.ImageVersion, LabImage: m.LabImage, NotAfter: time.UnixMilli(m.NotAfterMs), Challenges: m.Challenges,
		Failures: m.Failures, MaskedBytes: m.KtextMaskedBytes, TextBytes: m.KtextTotalBytes, Warnings: m.Warnings,
		SessionID: m.Session, EvidenceDigest: m.EvidenceDigest, Findings: []finding{}}
	for _, f := range m.Findings {
		v.Findings = append(v.Findings, finding{time.UnixMilli(f.TimeMs), f.Probe, f.Reason, f.Detail})
	}
	return v
}

func newGateway(m *v1.GetGatewayStatusResponse) *gatewayReport {
	g := &gatewayReport{Phase: short(m.Phase.String(), "PHASE_"), Dropped: m.Dropped, Violations: m.ViolationsTotal, Grants: []string{}, Bans: []string{}}
	for _, x := range m.Grants {
		g.Grants = append(g.Grants, fmt.Sprintf("%s task=%s to=%s:%d/%s until=%s", x.Id, x.Task, x.Address, x.Port, x.Protocol,
			time.UnixMilli(x.NotAfterMs).Format(time.RFC3339)))
	}
	for _, b := range m.Bans {
		g.Bans = append(g.Bans, fmt.Sprintf("%s until=%s", b.Mac, time.UnixMilli(b.NotAfterMs).Format(time.RFC3339)))
	}
	return g
}

func short(s, prefix string) string { return strings.ToLower(strings.TrimPrefix(s, prefix)) }

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	reset = "\x1b[0m"
)

func printStatus(w io.Writer, r statusReport, colour bool) {
	paint := func(c, s string) string {
		if !colour {
			return s
		}
		return c + s + reset
	}
	if v := r.Verdict; v != nil {
		state := paint(red, v.State)
		if v.State == "trusted" {
			state = paint(green, v.State)
		}
		fmt.Fprintf(w, "PC       %s   tier %s, posture of the Pi: %s, valid until %s\n", state, v.Tier, v.Posture, v.NotAfter.Format("15:04:05"))
		fmt.Fprintf(w, "asked    %d challenges, %d failed; kernel text: %d of %d bytes masked\n", v.Challenges, v.Failures, v.MaskedBytes, v.TextBytes)
		image := fmt.Sprintf("%s version %d", v.Image, v.Version)
		if v.LabImage {
			image = paint(red, image+"  LAB IMAGE: it has a root command channel")
		}
		fmt.Fprintf(w, "image    %s\n", image)
		for _, s := range v.Warnings {
			fmt.Fprintf(w, "warning  %s\n", s)
		}
		for _, f := range v.Findings {
			fmt.Fprintf(w, "finding  %s %s: %s (%s)\n", f.Time.Format("15:04:05"), f.Probe, f.Reason, f.Detail)
		}
	}
	if s := r.Session; s != nil {
		fmt.Fprintf(w, "session  %s %s over %s, %s\n", s.ID, s.State, s.Firmware, s.MAC)
	}
	if g := r.Gateway; g != nil {
		fmt.Fprintf(w, "firewall phase %s, %d forbidden packets, %d bans, %d grants\n", g.Phase, g.Violations, len(g.Bans), len(g.Grants))
		for _, s := range g.Grants {
			fmt.Fprintf(w, "grant    %s\n", s)
		}
		for _, s := range g.Bans {
			fmt.Fprintf(w, "ban      %s\n", s)
		}
	}
	printVerifier(w, r.Verifier, paint)
	for name, e := range r.Errors {
		fmt.Fprintf(w, "%s\n", paint(red, fmt.Sprintf("%s does not answer: %s", name, e)))
	}
}
