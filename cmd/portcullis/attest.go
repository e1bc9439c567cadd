package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/identity"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/result"
	"portcullis/internal/cli"
	"portcullis/internal/translog"
)

func init() { commands = append(commands, attestCommand()) }

func attestCommand() *cli.Command {
	c := &cli.Command{
		Name: "attest", Args: "[--pc NAME] [--context TEXT] [--probe NAME]… [--since CHECKPOINT] [--out FILE] [--json]",
		Summary: "Have the PC asked now, with a fresh nonce of yours in the question, and check everything that comes back:\n" +
			"the signature, the nonce, the entry in the verdict log, and that the log continues a checkpoint you kept.\n" +
			"Exit 0 only when the PC is trusted.",
		Example: "portcullis attest --context before:task-7 --out verdict.jwt",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error { return attest(ctx, c, stdio, args) }
	return c
}

// attestTime is enough for the longest deadline of a full challenge by default.
const attestTime = time.Minute

func attest(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	runDir := fs.String("run-dir", "/run/portcullis", "where the services' sockets are")
	pc := pcFlag(fs)
	keyText := fs.String("key", "", "the gateway's public key, base64; default: that of this Pi")
	keyFile := fs.String("key-file", filepath.Join(stateFlag, "attestd", "gateway.key"), "where this Pi's key is")
	what := fs.String("context", "", "what the answer is for; goes into the result and the log")
	since := fs.String("since", "", "file with a checkpoint of the verdict log from before")
	out := fs.String("out", "", "write the signed result to this file")
	asCWT := fs.Bool("cwt", false, "write it as CBOR (COSE_Sign1) and not as a JWT")
	asJSON := fs.Bool("json", false, "the claims as one JSON object")
	var probes stringList
	fs.Var(&probes, "probe", "this probe must be asked (may be given again)")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("attest takes no words")
	}
	key, err := gatewayKey(*keyText, *keyFile)
	if err != nil {
		return err
	}
	var checkpoint []byte
	if *since != "" {
		if checkpoint, err = readSmall(*since); err != nil {
			return err
		}
	}
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, attestTime)
	defer cancel()
	r, err := attestClient(*runDir).Ask(ctx, connect.NewRequest(&v1.AskRequest{Nonce: nonce, Context: *what, Probes: probes, Checkpoint: string(checkpoint), Pc: *pc}))
	if err != nil {
		return err
	}
	claims, err := checkAnswer(r.Msg, key, nonce, checkpoint)
	if err != nil {
		return err
	}
	if name := claims.Submods[result.SubmodPC].PC.Name; name != *pc {
		return fmt.Errorf("the result is of the PC %q, asked was %q", name, *pc)
	}
	if *out != "" {
		if err := writeToken(nil, *out, *asCWT, r.Msg.Jwt, r.Msg.Cwt); err != nil {
			return err
		}
	}
	return showClaims(stdio.Out, claims, *asJSON)
}

func gatewayKey(text, file string) (ed25519.PublicKey, error) {
	if text == "" {
		key, err := identity.Load(file)
		if err != nil {
			return nil, fmt.Errorf("%w; give --key", err)
		}
		return identity.PublicKey(key), nil
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, cli.Usagef("--key is not 32 bytes in base64")
	}
	return key, nil
}

// checkAnswer believes nothing of the answer that the gateway's key, our nonce
// and our checkpoint do not show.
func checkAnswer(a *v1.AskResponse, key ed25519.PublicKey, nonce, checkpoint []byte) (*result.Claims, error) {
	claims, err := result.Verify([]byte(a.Jwt), key, time.Now(), nonce)
	if err != nil {
		return nil, err
	}
	pc := claims.Submods[result.SubmodPC].PC
	if pc.Asked == nil || len(pc.Asked.Nonces) > protocol.MaxNonces ||
		!slices.ContainsFunc(pc.Asked.Nonces, func(n result.Bytes) bool { return bytes.Equal(n, nonce) }) {
		return nil, &result.Error{Reason: result.ReasonNonce, Detail: "the PC's question did not hold our nonce"}
	}
	log, err := identity.LogVerifier(key)
	if err != nil {
		return nil, err
	}
	proof, err := translog.ParseProof([]byte(a.Proof))
	if err != nil {
		return nil, err
	}
	now, err := proof.Verify(a.Entry, log)
	if err != nil {
		return nil, err
	}
	if proof.Index != pc.LogIndex {
		return nil, errors.New("the proof is of another entry than the result names")
	}
	if len(checkpoint) == 0 {
		return claims, nil
	}
	earlier, err := translog.ParseCheckpoint(checkpoint, log)
	if err != nil {
		return nil, err
	}
	return claims, translog.CheckConsistency(now, earlier, a.Consistency)
}
