package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/internal/cli"
	"portcullis/internal/translog"
	"portcullis/verifier/approval"
	"portcullis/verifier/record"
	"portcullis/verifier/witness"
)

// logFiles are a log's files, in a directory or below a URL.
func logFiles(ctx context.Context, place string) fs.FS {
	if strings.HasPrefix(place, "http://") || strings.HasPrefix(place, "https://") {
		return translog.Remote(ctx, place, &http.Client{Timeout: 30 * time.Second})
	}
	return os.DirFS(place)
}

func publicKey(text string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, cli.Usagef("--key is not 32 bytes in base64")
	}
	return b, nil
}

// auditFlags are what the auditor knows from elsewhere.
type auditFlags struct {
	place     logPlace
	runDir    *string
	since     *string
	quorum    *int
	asJSON    *bool
	approvers stringList
	witnesses stringList
}

// auditReport is what is printed; Reason is "" when nothing is wrong.
type auditReport struct {
	OK       bool             `json:"ok"`
	Origin   string           `json:"origin,omitempty"`
	Entries  int64            `json:"entries"`
	Kinds    map[string]int64 `json:"kinds,omitempty"`    // of a log of approvals
	Pinned   *bool            `json:"pinned,omitempty"`   // its approvers are those of --approvers
	Cosigned *int64           `json:"cosigned,omitempty"` // entries that the quorum has signed
	Reason   string           `json:"reason,omitempty"`
	Detail   string           `json:"detail,omitempty"`
}

func logAudit(ctx context.Context, c *cli.Command, stdio *cli.IO, args []string) error {
	fs := cli.NewFlags(c, stdio)
	f := auditFlags{place: logFlags(fs)}
	f.runDir = fs.String("run-dir", "/run/portcullis", "where the services' sockets are: verifierd is asked for its log's key where none is given")
	f.since = fs.String("since", "", "file with an earlier checkpoint of the same log, which it must continue")
	f.quorum = fs.Int("quorum", 0, "so many of the witnesses must have signed a log of approvals")
	f.asJSON = fs.Bool("json", false, "one JSON object")
	fs.Var(&f.approvers, "approvers", "file of approvers that a log of approvals may have; may be given again. Without it the log is believed who they are")
	fs.Var(&f.witnesses, "witness", "key of a witness, name+hash+key; may be given again")
	words, err := cli.Parse(c, stdio, fs, args)
	if err != nil {
		return err
	}
	if len(words) > 1 || *f.quorum < 0 || *f.quorum > len(f.witnesses) {
		return cli.Usagef("log audit takes one directory or URL, and a --quorum of at most as many as there are --witness")
	}
	if len(words) == 1 {
		*f.place.dir = words[0]
	}
	report, err := f.audit(ctx, stdio)
	if err == nil {
		report.OK = true
	} else {
		if report.Reason = reasonOf(err); report.Reason == "" || !*f.asJSON {
			return err
		}
		report.Detail = err.Error()
	}
	return f.tell(stdio, report)
}

// reasonOf is the typed reason of whichever part of an audit has refused.
func reasonOf(err error) string {
	for _, of := range []func(error) string{record.Reason, approval.Reason, witness.Reason, translog.Reason} {
		if r := of(err); r != "" {
			return r
		}
	}
	return ""
}

// audit finds out which kind of log it is by the name in its checkpoint; the key
// that is checked then is one for that name only.
func (f *auditFlags) audit(ctx context.Context, stdio *cli.IO) (auditReport, error) {
	var report auditReport
	files := logFiles(ctx, *f.place.dir)
	head, err := readHead(files)
	if err != nil {
		return report, err
	}
	ofApprovals := bytes.HasPrefix(head, []byte(record.OriginPrefix))
	key, err := f.verifier(ctx, ofApprovals)
	if err != nil {
		return report, err
	}
	r, err := translog.NewReader(files, key)
	if err != nil {
		return report, err
	}
	report.Origin, report.Entries = r.Checkpoint.Origin, r.Checkpoint.Size
	if ofApprovals {
		err = f.approvals(stdio, r, key, files, &report)
	} else {
		err = r.Audit(nil)
	}
	if err == nil && *f.since != "" {
		err = continues(r, key, *f.since)
	}
	return report, err
}

// readHead reads the beginning of the checkpoint.
func readHead(files fs.FS) ([]byte, error) {
	file, err := files.Open("checkpoint")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &translog.Error{Reason: translog.ReasonMissing, Detail: "checkpoint is not there"}
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head := make([]byte, 64)
	n, err := file.Read(head)
	if n == 0 && err != nil {
		return nil, &translog.Error{Reason: translog.ReasonCheckpoint, Detail: err.Error()}
	}
	return head[:n], nil
}

func (f *auditFlags) verifier(ctx context.Context, ofApprovals bool) (note.Verifier, error) {
	if !ofApprovals {
		return logKey(*f.place.key, *f.place.dir)
	}
	public, err := approvalsPlace{key: f.place.key, runDir: f.runDir}.public(ctx)
	if err != nil {
		return nil, err
	}
	return record.Verifier(public)
}

func (f *auditFlags) approvals(stdio *cli.IO, r *translog.Reader, key note.Verifier, files fs.FS, report *auditReport) error {
	told := time.Now()
	o := record.AuditOptions{Quorum: *f.quorum, Files: files, Each: func(i int64, _ *record.Entry) error {
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			fmt.Fprintf(stdio.Err, "%d of %d entries\n", i, r.Checkpoint.Size)
		}
		return nil
	}}
	for _, file := range f.approvers {
		a, err := approval.LoadApprovers(file)
		if err != nil {
			return err
		}
		o.Approvers = append(o.Approvers, a)
	}
	for _, text := range f.witnesses {
		k, err := witness.ParseKey(text)
		if err != nil {
			return err
		}
		o.Witnesses = append(o.Witnesses, k)
	}
	got, err := record.Audit(r, key, o)
	if got != nil {
		report.Kinds, report.Pinned, report.Cosigned = got.Kinds, &got.Pinned, &got.Cosigned
	}
	return err
}

func (f *auditFlags) tell(stdio *cli.IO, report auditReport) error {
	if *f.asJSON {
		if err := json.NewEncoder(stdio.Out).Encode(report); err != nil {
			return err
		}
		if !report.OK {
			return &cli.ExitError{Code: 1}
		}
		return nil
	}
	fmt.Fprintf(stdio.Out, "ok: %d entries of %s\n", report.Entries, report.Origin)
	if report.Kinds != nil {
		fmt.Fprintf(stdio.Out, "%d approvals, %d revocations; each of %d permissions follows from them; %d refusals\n",
			report.Kinds[record.KindApproval], report.Kinds[record.KindRevocation], report.Kinds[record.KindPermission], report.Kinds[record.KindRefusal])
		if !*report.Pinned {
			fmt.Fprintln(stdio.Out, "who the approvers are is the log's own word: name them with --approvers")
		}
		if *f.quorum == 0 {
			fmt.Fprintln(stdio.Out, "no witness was asked for: that others are shown the same log is the Pi's own word")
		} else {
			fmt.Fprintf(stdio.Out, "%d entries are signed by %d witnesses or more\n", *report.Cosigned, *f.quorum)
		}
	}
	_, err := fmt.Fprintf(stdio.Out, "keep a copy of %s: a later audit with --since shows that nothing was taken out\n", keepable(*f.place.dir))
	return err
}

func keepable(place string) string {
	if strings.Contains(place, "://") {
		return strings.TrimSuffix(place, "/") + "/checkpoint"
	}
	return filepath.Join(place, "checkpoint")
}

func continues(r *translog.Reader, key note.Verifier, file string) error {
	msg, err := readSmall(file)
	if err != nil {
		return err
	}
	earlier, err := translog.ParseCheckpoint(msg, key)
	if err != nil {
		return err
	}
	return r.Continues(earlier)
}
