package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/fingerprint"
	"portcullis/images/manifest"
	"portcullis/internal/cli"
)

func fingerprintApproveCommand() *cli.Command {
	c := &cli.Command{
		Name: "fingerprint approve", Args: "--key FILE [--out FILE] | --record FILE",
		Summary: "Approve the drift that waits, or else the enrolment, with an operator's key. What is signed is what is shown:\n" +
			"attestd refuses it if something else waits by then. With --out the record is written and not sent, for another hand\n" +
			"to send with --record. Make a key with 'portcullis image keygen' and name its public half in attest.operator_keys.",
		Example: "portcullis fingerprint approve --key operator.key --note 'second disk, ticket 4711'",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		runDir, asJSON := sharedFlags(fs)
		machine := fs.String("machine", "", "MAC of the PC; the configured one")
		key := fs.String("key", "", "the operator's key file")
		note := fs.String("note", "", "why, for the record; at most 512 bytes")
		out := fs.String("out", "", "write the signed record here and do not send it")
		record := fs.String("record", "", "send a record that was signed elsewhere")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 0 || (*key == "") == (*record == "") || *record != "" && (*out != "" || *note != "") {
			return cli.Usagef("fingerprint approve needs --key, or --record alone")
		}
		var envelope []byte
		if *record != "" {
			envelope, err = readUpTo(*record, fingerprint.MaxApproval)
		} else {
			envelope, err = signApproval(ctx, stdio, *runDir, *machine, *key, *note, *asJSON)
		}
		if err != nil {
			return fmt.Errorf("fingerprint approve: %w", err)
		}
		if *out != "" {
			if err := writeFresh(*out, envelope); err != nil {
				return fmt.Errorf("fingerprint approve: %w", err)
			}
			if *asJSON {
				return json.NewEncoder(stdio.Out).Encode(map[string]string{"record": *out})
			}
			fmt.Fprintf(stdio.Out, "written to %s; nothing is approved until it is sent\n", *out)
			return nil
		}
		return sendApproval(ctx, stdio, *runDir, *machine, envelope, *asJSON)
	}
	return c
}

// signApproval shows what waits and signs it.
func signApproval(ctx context.Context, stdio *cli.IO, runDir, machine, keyFile, note string, quiet bool) ([]byte, error) {
	key, err := manifest.LoadKey(keyFile)
	if err != nil {
		return nil, err
	}
	r, err := getFingerprint(ctx, runDir, machine)
	if err != nil {
		return nil, err
	}
	if !quiet {
		printFingerprint(stdio.Out, r, false)
	}
	a, err := approvalOf(r, note)
	if err != nil {
		return nil, err
	}
	return a.Sign(key)
}

func sendApproval(ctx context.Context, stdio *cli.IO, runDir, machine string, envelope []byte, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, fingerprintCall)
	defer cancel()
	done, err := fingerprintClient(runDir).ApproveFingerprint(ctx, connect.NewRequest(&v1.ApproveFingerprintRequest{Machine: machine, Envelope: envelope}))
	if err != nil {
		return fmt.Errorf("fingerprint approve: %s", plainly(err))
	}
	m := done.Msg
	if asJSON {
		return json.NewEncoder(stdio.Out).Encode(map[string]any{"of": m.Of, "generation": m.Generation, "root": m.Root, "approved_by": m.ApprovedBy})
	}
	fmt.Fprintf(stdio.Out, "approved    the %s, by key %s; enrolled is generation %d with root %s\n", m.Of, m.ApprovedBy, m.Generation, m.Root)
	return nil
}

func fingerprintOpenCommand() *cli.Command {
	c := &cli.Command{
		Name: "fingerprint open", Args: "CLASS SLOT",
		Summary: "Write the opening of one part to standard output: its value, its salt, and the proof that it is in the fingerprint.\n" +
			"It says nothing of the other parts.",
		Example: "portcullis fingerprint open dmi board_serial > board.json",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		runDir, _ := sharedFlags(fs)
		machine := fs.String("machine", "", "MAC of the PC; the configured one")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 2 {
			return cli.Usagef("fingerprint open needs a class and a slot; see 'portcullis fingerprint show --parts'")
		}
		ctx, cancel := context.WithTimeout(ctx, fingerprintCall)
		defer cancel()
		o, err := fingerprintClient(*runDir).OpenFingerprint(ctx, connect.NewRequest(&v1.OpenFingerprintRequest{Machine: *machine, Class: words[0], Slot: words[1]}))
		if err != nil {
			return fmt.Errorf("fingerprint open: %s", plainly(err))
		}
		_, err = fmt.Fprintf(stdio.Out, "%s\n", o.Msg.Opening)
		return err
	}
	return c
}

// verifyReport is the --json shape of verify.
type verifyReport struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
	Class  string `json:"class"`
	Slot   string `json:"slot"`
	Value  string `json:"value"`
	Root   string `json:"root"`
}

func fingerprintVerifyCommand() *cli.Command {
	c := &cli.Command{
		Name: "fingerprint verify", Args: "OPENING (--root HEX | --record FILE --operator FILE.pub)",
		Summary: "Check an opening against a fingerprint: against its root, or against the approval that an operator signed.\n" +
			"Needs nothing but the files. Exit 1 where the part is not in that fingerprint.",
		Example: "portcullis fingerprint verify board.json --record approval.dsse --operator operator.key.pub",
	}
	c.Run = func(_ context.Context, stdio *cli.IO, args []string) error {
		fs := cli.NewFlags(c, stdio)
		root := fs.String("root", "", "the root, 64 hex digits")
		record := fs.String("record", "", "an approval")
		operator := fs.String("operator", "", "public half of the key that signed it")
		asJSON := fs.Bool("json", false, "JSON output")
		words, err := cli.Parse(c, stdio, fs, args)
		if err != nil {
			return err
		}
		if len(words) != 1 || (*root == "") == (*record == "") || (*record == "") != (*operator == "") {
			return cli.Usagef("fingerprint verify needs a file and --root, or --record with --operator")
		}
		if *record != "" {
			if *root, err = approvedRoot(*record, *operator); err != nil {
				return fmt.Errorf("fingerprint verify: %w", err)
			}
		}
		b, err := readUpTo(words[0], fingerprint.MaxOpening)
		if err != nil {
			return fmt.Errorf("fingerprint verify: %w", err)
		}
		return verifyOpening(stdio, b, *root, *asJSON)
	}
	return c
}

func verifyOpening(stdio *cli.IO, b []byte, rootHex string, asJSON bool) error {
	root, err := hex.DecodeString(rootHex)
	if err != nil || len(root) != 32 {
		return cli.Usagef("a root is 64 hex digits")
	}
	o, err := fingerprint.ParseOpening(b)
	if err == nil {
		err = o.Verify([32]byte(root))
	}
	if asJSON {
		r := verifyReport{OK: err == nil, Root: rootHex}
		if err != nil {
			r.Reason = err.Error()
		} else {
			r.Class, r.Slot, r.Value = o.Class, o.Slot, o.Value
		}
		if jerr := json.NewEncoder(stdio.Out).Encode(r); jerr != nil {
			return jerr
		}
		if err != nil {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("fingerprint verify: %w", err)
	}
	fmt.Fprintf(stdio.Out, "%s %q is %q in the fingerprint with root %s\n", o.Class, o.Slot, o.Value, rootHex)
	return nil
}

// approvedRoot is the root that an operator's approval names.
func approvedRoot(file, operator string) (string, error) {
	key, err := manifest.LoadPublicKey(operator)
	if err != nil {
		return "", err
	}
	envelope, err := readUpTo(file, fingerprint.MaxApproval)
	if err != nil {
		return "", err
	}
	a, err := fingerprint.OpenApproval(envelope, []ed25519.PublicKey{key})
	if err != nil {
		return "", err
	}
	return a.Root, nil
}

func readUpTo(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(b) > most {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return b, err
}

// writeFresh writes a file that is not there yet.
func writeFresh(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
