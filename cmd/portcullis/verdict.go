package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/result"
	"portcullis/internal/cli"
	"portcullis/internal/rpc"
)

func init() { commands = append(commands, verdictCommand()) }

func verdictCommand() *cli.Command {
	get := &cli.Command{
		Name: "verdict get", Args: "[--cwt] [--out FILE]",
		Summary: "Have the Pi sign what it believes of the PC now: an EAT attestation result as JWT, or as CWT.\n" +
			"The PC is not asked for it; `portcullis attest` asks it.",
		Example: "portcullis verdict get --out verdict.jwt",
	}
	get.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		return verdictGet(ctx, get, stdio, args)
	}
	verify := &cli.Command{
		Name: "verdict verify", Args: "FILE --key KEY [--nonce NONCE] [--json]",
		Summary: "Check a signed result on any machine, and show what it claims and what that is worth:\n" +
			"exit 0 when it is genuine, in its time and says trusted, 1 when not.",
		Example: "portcullis verdict verify verdict.jwt --key \"$GATEWAY_KEY\"",
	}
	verify.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return verdictVerify(verify, stdio, args) }
	return &cli.Command{Name: "verdict", Summary: "What the Pi believes of the PC, signed, for others", Sub: []*cli.Command{get, verify}}
}

func attestClient(runDir string) portcullisv1connect.AttestClient {
	return portcullisv1connect.NewAttestClient(rpc.Client(filepath.Join(runDir, rpc.AttestSocket)), rpc.BaseURL)
}

func verdictGet(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	runDir := fs.String("run-dir", "/run/portcullis", "where the services' sockets are")
	pc := pcFlag(fs)
	asCWT := fs.Bool("cwt", false, "CBOR (COSE_Sign1) and not a JWT")
	out := fs.String("out", "", "write to this file; default: standard output")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("verdict get takes no words")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := attestClient(*runDir).GetResult(ctx, connect.NewRequest(&v1.GetResultRequest{Pc: *pc}))
	if err != nil {
		return err
	}
	return writeToken(stdio.Out, *out, *asCWT, r.Msg.Jwt, r.Msg.Cwt)
}

func writeToken(w io.Writer, file string, asCWT bool, jwt string, cwt []byte) error {
	token := []byte(jwt + "\n")
	if asCWT {
		token = cwt
	}
	if file != "" {
		return os.WriteFile(file, token, 0o644)
	}
	_, err := w.Write(token)
	return err
}

func verdictVerify(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	keyText := fs.String("key", "", "the gateway's public key, base64 as `portcullis identity` shows it")
	nonceText := fs.String("nonce", "", "the nonce that was asked with, base64url")
	asJSON := fs.Bool("json", false, "the claims as one JSON object")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	key, err := base64.StdEncoding.DecodeString(*keyText)
	if len(words) != 1 || err != nil || len(key) != ed25519.PublicKeySize {
		return cli.Usagef("verdict verify takes the token's file, and --key with 32 bytes in base64")
	}
	nonce, err := base64.RawURLEncoding.DecodeString(*nonceText)
	if err != nil {
		return cli.Usagef("--nonce is not base64url")
	}
	token, err := readSmall(words[0])
	if err != nil {
		return err
	}
	claims, err := result.Verify(token, key, time.Now(), nonce)
	if err != nil {
		return err
	}
	return showClaims(stdio.Out, claims, *asJSON)
}

// showClaims ends with 1 where the claims are not trust.
func showClaims(w io.Writer, claims *result.Claims, asJSON bool) error {
	pc := claims.Submods[result.SubmodPC]
	if asJSON {
		if err := json.NewEncoder(w).Encode(claims); err != nil {
			return err
		}
	} else {
		printClaims(w, claims, pc)
	}
	if pc.PC.State != "trusted" {
		return &cli.ExitError{Code: 1}
	}
	return nil
}

func printClaims(w io.Writer, claims *result.Claims, pc result.Appraisal) {
	p := pc.PC
	fmt.Fprintf(w, "signed   by this gateway, %s to %s\n", utc(claims.IssuedAt), utc(claims.Expires))
	name := ""
	if p.Name != "" {
		name = p.Name + " "
	}
	fmt.Fprintf(w, "PC       %s%s (%s), EAR status %s\n", name, p.State, p.Reason, pc.Status)
	fmt.Fprintf(w, "tier     %s: %s\n", p.Tier, p.Means)
	fmt.Fprintf(w, "gateway  posture %s, as it says itself\n", claims.Submods[result.SubmodGateway].Gateway.Posture)
	lab := ""
	if p.LabImage {
		lab = ", with a command channel"
	}
	fmt.Fprintf(w, "image    %s version %d%s, boot session %s\n", p.Image, p.ImageVersion, lab, p.Session)
	fmt.Fprintf(w, "asked    %d challenges, %d failed; evidence %x\n", p.Challenges, p.Failures, []byte(p.Evidence))
	if p.LogOrigin != "" && p.LogEntries > 0 {
		fmt.Fprintf(w, "log      entry %d of %s\n", p.LogIndex, p.LogOrigin)
	}
	for _, s := range p.Warnings {
		fmt.Fprintf(w, "warning  %s\n", s)
	}
	for _, f := range p.Findings {
		fmt.Fprintf(w, "finding  %s %s %s: %s %s\n", utc(f.Time), f.Class, f.Probe, f.Reason, f.Detail)
	}
}

func utc(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }
