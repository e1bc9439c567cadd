package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"portcullis/attestserver/identity"
	"portcullis/internal/cli"
	"portcullis/internal/translog"
)

func init() { commands = append(commands, logCommand()) }

func logCommand() *cli.Command {
	show := &cli.Command{
		Name: "log show", Args: "[--last N] [--json]",
		Summary: "Show the entries of the verdict log with their index, each checked against the signed checkpoint.",
		Example: "portcullis log show --last 20\nportcullis log show --json | jq 'select(.entry.state == \"quarantined\")'",
	}
	show.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return logShow(show, stdio, args) }
	prove := &cli.Command{
		Name: "log prove", Args: "INDEX [--entry FILE] [--out FILE]",
		Summary: "Write a proof that an entry is in the verdict log (C2SP tlog-proof): it can be checked without the log.",
		Example: "portcullis log prove 17 --entry entry.json --out entry.tlog-proof",
	}
	prove.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return logProve(prove, stdio, args) }
	verify := &cli.Command{
		Name: "log verify", Args: "PROOF --entry FILE --key KEY",
		Summary: "Check a proof against the gateway's public key, on any machine: exit 0 when it holds, 1 when not.",
		Example: "portcullis log verify entry.tlog-proof --entry entry.json --key \"$GATEWAY_KEY\"",
	}
	verify.Run = func(_ context.Context, stdio *cli.IO, args []string) error { return logVerify(verify, stdio, args) }
	audit := &cli.Command{
		Name: "log audit", Args: "[DIR|URL] [--since CHECKPOINT] [--json]",
		Summary: "Read a whole log, of verdicts or of approvals, compare it with its checkpoint, and with an earlier one that you\n" +
			"kept. In a log of approvals every permission must follow from the approvals before it, and these from their\n" +
			"signatures. Exit 0 when nothing is wrong, 1 when not.",
		Example: "portcullis log audit copy/ --key \"$GATEWAY_KEY\" --since checkpoint.last-month\n" +
			"portcullis log audit https://node.example/log --key \"$LOG_KEY\" --approvers approvers.json --witness \"$W1\" --quorum 1",
	}
	audit.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		return logAudit(ctx, audit, stdio, args)
	}
	return &cli.Command{Name: "log", Summary: "The log of verdicts that nobody can rewrite", Sub: []*cli.Command{show, prove, verify, audit}}
}

// logPlace is where a log is and who has signed it.
type logPlace struct{ dir, key *string }

func logFlags(fs interface {
	String(name, value, usage string) *string
}) logPlace {
	return logPlace{
		dir: fs.String("log", filepath.Join(stateFlag, "attestd", "verdicts"), "directory of the log, or a copy of it"),
		key: fs.String("key", "", "the gateway's public key, base64 as `portcullis identity` shows it; default: that of this Pi"),
	}
}

func (p logPlace) open() (*translog.Reader, error) {
	key, err := logKey(*p.key, *p.dir)
	if err != nil {
		return nil, err
	}
	return translog.NewReader(os.DirFS(*p.dir), key)
}

// logKey takes the key that was given, or that of the Pi whose log it is.
func logKey(text, dir string) (note.Verifier, error) {
	if text != "" {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return nil, cli.Usagef("--key is not 32 bytes in base64: `portcullis identity --json` shows it as gateway_key")
		}
		return identity.LogVerifier(b)
	}
	key, err := identity.Load(filepath.Join(filepath.Dir(dir), "gateway.key"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("give --key: there is no gateway key beside %s", dir)
	}
	if err != nil {
		return nil, err
	}
	return identity.LogVerifier(identity.PublicKey(key))
}

func logShow(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	place := logFlags(fs)
	last := fs.Int64("last", 0, "only this many, the newest; 0 = all")
	asJSON := fs.Bool("json", false, "one JSON object a line: index and entry")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 || *last < 0 {
		return cli.Usagef("log show takes no words, and --last a number from 0")
	}
	r, err := place.open()
	if err != nil {
		return err
	}
	from := int64(0)
	if *last > 0 {
		from = max(0, r.Checkpoint.Size-*last)
	}
	for i := from; i < r.Checkpoint.Size; i++ {
		e, err := r.Entry(i)
		if err != nil {
			return err
		}
		if err := printEntry(stdio.Out, i, e, *asJSON); err != nil {
			return err
		}
	}
	return nil
}

func printEntry(w io.Writer, index int64, entry []byte, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			Index int64           `json:"index"`
			Entry json.RawMessage `json:"entry"`
		}{index, entry})
	}
	var e struct{ Time, Session, State, Reason, Tier, Posture string }
	if err := json.Unmarshal(entry, &e); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%6d  %s  %-11s %s  (%s, Pi %s)  %s\n", index, e.Time, e.State, e.Reason, e.Tier, e.Posture, e.Session)
	return err
}

func logProve(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	place := logFlags(fs)
	entryFile := fs.String("entry", "", "also write the entry itself, byte for byte, to this file")
	out := fs.String("out", "", "write the proof to this file; default: standard output")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	var index int64
	if len(words) != 1 {
		return cli.Usagef("log prove takes one word, the index of the entry")
	}
	if _, err := fmt.Sscanf(words[0], "%d", &index); err != nil || fmt.Sprint(index) != words[0] {
		return cli.Usagef("%q is no index: `portcullis log show` lists them", words[0])
	}
	r, err := place.open()
	if err != nil {
		return err
	}
	return writeProof(stdio, r, index, *entryFile, *out)
}

// writeProof proves an entry; entryFile gets the entry, out the proof, standard
// output where it is "".
func writeProof(stdio *cli.IO, r *translog.Reader, index int64, entryFile, out string) error {
	entry, err := r.Entry(index)
	if err != nil {
		return err
	}
	p, err := r.Prove(index)
	if err != nil {
		return err
	}
	if entryFile != "" {
		if err := os.WriteFile(entryFile, entry, 0o644); err != nil {
			return err
		}
	}
	if out != "" {
		return os.WriteFile(out, []byte(p.String()), 0o644)
	}
	_, err = io.WriteString(stdio.Out, p.String())
	return err
}

func logVerify(c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	entryFile := fs.String("entry", "", "file with the entry, byte for byte")
	key := fs.String("key", "", "the gateway's public key, base64")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 || *entryFile == "" || *key == "" {
		return cli.Usagef("log verify takes the proof's file, --entry and --key")
	}
	public, err := logKey(*key, "")
	if err != nil {
		return err
	}
	text, err := readSmall(words[0])
	if err != nil {
		return err
	}
	entry, err := readSmall(*entryFile)
	if err != nil {
		return err
	}
	p, err := translog.ParseProof(text)
	if err != nil {
		return err
	}
	checkpoint, err := p.Verify(entry, public)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdio.Out, "ok: entry %d of %s, which had %d entries\n", p.Index, checkpoint.Origin, checkpoint.Size)
	return err
}

// readSmall reads a file that is a proof, a token or an entry: at most 128 KiB.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const limit = 128 << 10
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return b, err
}
