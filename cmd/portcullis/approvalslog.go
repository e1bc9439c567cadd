package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"portcullis/internal/cli"
	"portcullis/internal/translog"
	"portcullis/verifier/approval"
	"portcullis/verifier/record"
)

// listed is an approval for people and programs.
type listed struct {
	Index    int64              `json:"index"`
	Digest   string             `json:"digest"`
	State    string             `json:"state"` // valid, or the reason why not
	Approval *approval.Approval `json:"approval"`
}

func toListed(l record.Listed) listed {
	state := "valid"
	if l.Refused != nil {
		state = approval.Reason(l.Refused)
	}
	return listed{l.Index, l.Digest, state, l.Approval}
}

func approvalsList(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	place := approvalsFlags(fs)
	all := fs.Bool("all", false, "those too that would be refused, with the reason")
	asJSON := fs.Bool("json", false, "one JSON object a line")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 0 {
		return cli.Usagef("approvals list takes no words")
	}
	_, report, err := place.open(ctx, nil)
	if err != nil {
		return err
	}
	for _, l := range report.List(time.Now()) {
		v := toListed(l)
		if l.Refused != nil && !*all {
			continue
		}
		if *asJSON {
			err = json.NewEncoder(stdio.Out).Encode(v)
		} else {
			a := v.Approval
			_, err = fmt.Fprintf(stdio.Out, "%6d  %-20s  %-24s  %-16s  until %s  %.19s\n", v.Index, approval.Version(a), a.Purpose, v.State, a.NotAfter.Format(time.DateOnly), v.Digest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func approvalsShow(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	place := approvalsFlags(fs)
	asJSON := fs.Bool("json", false, "one JSON object")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 {
		return cli.Usagef("approvals show takes one digest, index or file")
	}
	if _, err := os.Stat(words[0]); err == nil {
		return showFile(stdio, words[0], *asJSON)
	}
	r, report, index, err := find(ctx, place, words[0])
	if err != nil {
		return err
	}
	i := slices.IndexFunc(report.List(time.Now()), func(l record.Listed) bool { return l.Index == index })
	if i < 0 {
		entry, err := r.Entry(index)
		if err == nil {
			_, err = fmt.Fprintf(stdio.Out, "%s\n", entry)
		}
		return err
	}
	v := toListed(report.List(time.Now())[i])
	if *asJSON {
		return json.NewEncoder(stdio.Out).Encode(v)
	}
	if err := printApproval(stdio.Out, v.Digest, v.Approval); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdio.Out, "  entry    %d\n  state    %s\n", v.Index, v.State)
	return err
}

func showFile(stdio *cli.IO, path string, asJSON bool) error {
	b, err := readSmall(path)
	if err != nil {
		return err
	}
	return tellSigned(stdio, signFlags{asJSON: &asJSON}, path, b)
}

// find reads the log and finds the entry that a word names.
func find(ctx context.Context, place approvalsPlace, word string) (*translog.Reader, *record.Report, int64, error) {
	index, err := strconv.ParseInt(word, 10, 64)
	byDigest := approval.IsDigest(word)
	if err != nil && !byDigest {
		return nil, nil, 0, cli.Usagef("%q is neither a file, nor the digest of an approval, nor an index", word)
	}
	r, report, err := place.open(ctx, nil)
	if err != nil {
		return nil, nil, 0, err
	}
	if byDigest {
		index = -1
		for _, l := range report.List(time.Now()) {
			if l.Digest == word {
				index = l.Index
			}
		}
		if index < 0 {
			return nil, nil, 0, &approval.Error{Reason: approval.ReasonUnapproved, Detail: "no approval " + word + " in the log"}
		}
	}
	return r, report, index, nil
}

func approvalsProve(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	place := approvalsFlags(fs)
	entryFile := fs.String("entry", "", "also write the entry itself, byte for byte, to this file")
	out := fs.String("out", "", "write the proof to this file; default: standard output")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 {
		return cli.Usagef("approvals prove takes one digest or index")
	}
	r, _, index, err := find(ctx, place, words[0])
	if err != nil {
		return err
	}
	return writeProof(stdio, r, index, *entryFile, *out)
}

func approvalsVerify(_ context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	entryFile := fs.String("entry", "", "file with the entry, byte for byte")
	key := fs.String("key", "", "public key of the log, base64")
	approversFile := fs.String("approvers", "", "file of those whose signatures count; without it only the log's word is checked")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) != 1 || *entryFile == "" || *key == "" {
		return cli.Usagef("approvals verify takes the proof's file, --entry and --key")
	}
	public, err := publicKey(*key)
	if err != nil {
		return err
	}
	text, err := readSmall(words[0])
	if err != nil {
		return err
	}
	data, err := readSmall(*entryFile)
	if err != nil {
		return err
	}
	v, err := record.Verifier(public)
	if err != nil {
		return err
	}
	p, err := translog.ParseProof(text)
	if err != nil {
		return err
	}
	checkpoint, err := p.Verify(data, v)
	if err != nil {
		return err
	}
	e, err := record.ParseEntry(data)
	if err != nil {
		return err
	}
	signed := "signatures not asked for"
	if *approversFile != "" {
		if signed, err = checkSigned(e, *approversFile); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(stdio.Out, "ok: %s, entry %d of %s, which had %d entries; %s\n", e.Kind, p.Index, checkpoint.Origin, checkpoint.Size, signed)
	return err
}

func checkSigned(e *record.Entry, file string) (string, error) {
	approvers, err := approval.LoadApprovers(file)
	if err != nil {
		return "", err
	}
	switch e.Kind {
	case record.KindApproval:
		_, _, err = approvers.Open(e.Envelope)
	case record.KindRevocation:
		_, err = approvers.OpenRevocation(e.Envelope)
	default:
		return "of this kind none is signed by approvers", nil
	}
	return "signed by enough of its approvers", err
}
