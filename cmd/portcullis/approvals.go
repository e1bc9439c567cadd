package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/manifest"
	"portcullis/internal/cli"
	"portcullis/internal/rpc"
	"portcullis/internal/translog"
	"portcullis/verifier/approval"
	"portcullis/verifier/record"
)

func init() { commands = append(commands, approvalsCommand()) }

func approvalsCommand() *cli.Command {
	leaf := func(name, args, summary, example string, run func(context.Context, *cli.Command, *cli.IO, []string) error) *cli.Command {
		c := &cli.Command{Name: "approvals " + name, Args: args, Summary: summary, Example: example}
		c.Run = func(ctx context.Context, stdio *cli.IO, words []string) error { return run(ctx, c, stdio, words) }
		return c
	}
	return &cli.Command{Name: "approvals", Summary: "What this Pi's Docker may load and start, and the log of it", Sub: []*cli.Command{
		leaf("add", "FILE…", "Hand approvals and revocations to the running verifierd: in force when this ends.",
			"portcullis approvals add pxed-3.approval", approvalsAdd),
		leaf("status", "[--json]", "How many approvers and witnesses there are, and what the log is worth with them.",
			"portcullis approvals status", approvalsStatus),
		leaf("list", "[--log DIR|URL] [--key KEY] [--all] [--json]", "List the approvals of the log that would be believed now; the whole log is checked.",
			"portcullis approvals list --all", approvalsList),
		leaf("show", "DIGEST|INDEX|FILE [--json]", "Show an approval of the log, or an entry, or a file of `portcullis approve`.",
			"portcullis approvals show pxed-3.approval", approvalsShow),
		leaf("prove", "DIGEST|INDEX [--entry FILE] [--out FILE]", "Write a proof that an entry is in the log (C2SP tlog-proof): it can be checked without the log.",
			"portcullis approvals prove 17 --entry entry.json --out entry.tlog-proof", approvalsProve),
		leaf("verify", "PROOF --entry FILE --key KEY --approvers FILE", "Check on any machine that an entry is in the log, and that its approvers signed it:\nexit 0 when so, 1 when not.",
			"portcullis approvals verify entry.tlog-proof --entry entry.json --key \"$LOG_KEY\" --approvers approvers.json", approvalsVerify),
		leaf("approvers", "KEY.pub… --threshold K [--revoke-threshold K] [--out FILE]", "Write the file of those whose signatures count, for /etc/portcullis on the Pi.",
			"portcullis approvals approvers one.key.pub two.key.pub --threshold 2 --out approvers.json", approvalsApprovers),
	}}
}

// approvalsPlace is where a log of approvals is.
type approvalsPlace struct{ log, key, runDir *string }

type stringFlags interface {
	String(name, value, usage string) *string
}

func approvalsFlags(fs stringFlags) approvalsPlace {
	return approvalsPlace{
		log:    fs.String("log", filepath.Join(stateFlag, "verifierd", "log"), "directory or URL of the log"),
		key:    fs.String("key", "", "public key of the log, base64 as `portcullis approvals status` shows it; default: asked of verifierd"),
		runDir: fs.String("run-dir", "/run/portcullis", "where the services' sockets are"),
	}
}

// open reads the whole log and checks every entry.
func (p approvalsPlace) open(ctx context.Context, each func(int64, *record.Entry) error) (*translog.Reader, *record.Report, error) {
	key, err := p.public(ctx)
	if err != nil {
		return nil, nil, err
	}
	v, err := record.Verifier(key)
	if err != nil {
		return nil, nil, err
	}
	r, err := translog.NewReader(logFiles(ctx, *p.log), v)
	if err != nil {
		return nil, nil, err
	}
	report, err := record.Audit(r, v, record.AuditOptions{Each: each})
	return r, report, err
}

// public takes the key that was given, or asks the verifierd of this machine: only
// whoever can read its log can reach its socket.
func (p approvalsPlace) public(ctx context.Context) ([]byte, error) {
	if *p.key != "" {
		return publicKey(*p.key)
	}
	s, err := verifierStatus(ctx, *p.runDir)
	if err != nil {
		return nil, cli.Usagef("give --key: verifierd does not answer here (%v)", err)
	}
	return s.Key, nil
}

func verifierCall(ctx context.Context, runDir, method, path string, body []byte, into any) error {
	q, err := http.NewRequestWithContext(ctx, method, rpc.BaseURL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	a, err := rpc.Client(filepath.Join(runDir, rpc.VerifierSocket)).Do(q)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, 64<<20)) // of root's own service: every approval's layers are in one answer
	if err != nil {
		return err
	}
	if a.StatusCode != http.StatusOK {
		var no record.Refused
		if err := json.Unmarshal(b, &no); err != nil {
			return fmt.Errorf("verifierd answers %s", a.Status)
		}
		return &approval.Error{Reason: no.Reason, Detail: no.Detail}
	}
	return json.Unmarshal(b, into)
}

func verifierStatus(ctx context.Context, runDir string) (s record.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = verifierCall(ctx, runDir, http.MethodGet, "/approvals/status", nil, &s)
	return s, err
}

func approvalsAdd(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	runDir := fs.String("run-dir", "/run/portcullis", "where the services' sockets are")
	asJSON := fs.Bool("json", false, "one JSON object a file")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return cli.Usagef("approvals add takes the files of `portcullis approve` or `portcullis revoke`")
	}
	for _, file := range words {
		envelope, err := readSmall(file)
		if err != nil {
			return err
		}
		var added record.Added
		if err := verifierCall(ctx, *runDir, http.MethodPost, "/approvals", envelope, &added); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if *asJSON {
			err = json.NewEncoder(stdio.Out).Encode(added)
		} else if added.New {
			_, err = fmt.Fprintf(stdio.Out, "%s: %s, entry %d of the log\n", file, added.Kind, added.Index)
		} else {
			_, err = fmt.Fprintf(stdio.Out, "%s: stands in the log already, entry %d\n", file, added.Index)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func approvalsStatus(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	runDir := fs.String("run-dir", "/run/portcullis", "where the services' sockets are")
	asJSON := fs.Bool("json", false, "one JSON object")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("approvals status takes no words")
	}
	s, err := verifierStatus(ctx, *runDir)
	if err != nil {
		return err
	}
	if *asJSON {
		err = json.NewEncoder(stdio.Out).Encode(s)
	} else {
		printApprovalsStatus(stdio.Out, s)
	}
	if err == nil && s.Failed != "" {
		return &cli.ExitError{Code: 1}
	}
	return err
}

func printApprovalsStatus(w io.Writer, s record.Status) {
	fmt.Fprintf(w, "log        %s, %d entries\nkey        %s\n", s.Origin, s.Entries, base64.StdEncoding.EncodeToString(s.Key))
	if s.Approvers == 0 {
		fmt.Fprintln(w, "approvers  none: nothing is approved")
	} else {
		fmt.Fprintf(w, "approvers  %d, an approval needs %d\n", s.Approvers, s.Threshold)
	}
	switch {
	case s.Quorum > 0:
		fmt.Fprintf(w, "witnesses  %d asked, quorum %d; %d entries cosigned\n", s.Witnesses, s.Quorum, s.Cosigned)
	case s.Witnesses > 0:
		fmt.Fprintf(w, "witnesses  %d asked, quorum 0: an approval waits for none of them; %d entries cosigned\n", s.Witnesses, s.Cosigned)
	default:
		fmt.Fprintln(w, "witnesses  quorum 0: nobody but this Pi vouches for the log")
	}
	for _, f := range s.Faults {
		fmt.Fprintf(w, "witness    %s\n", f)
	}
	if s.Failed != "" {
		fmt.Fprintf(w, "FAILED     %s: nothing is permitted\n", s.Failed)
	}
}

func approvalsApprovers(_ context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	threshold := fs.Int("threshold", 1, "signatures that an approval needs")
	revokeThreshold := fs.Int("revoke-threshold", 1, "signatures that a revocation needs")
	out := fs.String("out", "", "write to this file; default: standard output")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return cli.Usagef("approvals approvers takes the public halves of keys: FILE.pub")
	}
	a := approval.Approvers{Threshold: *threshold, RevokeThreshold: *revokeThreshold}
	for _, w := range words {
		k, err := manifest.LoadPublicKey(w)
		if err != nil {
			return err
		}
		a.Keys = append(a.Keys, k)
	}
	text, err := a.Encode()
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if *out != "" {
		return os.WriteFile(*out, text, 0o644)
	}
	_, err = stdio.Out.Write(text)
	return err
}
