package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"portcullis/internal/journal"
)

// Filter chooses entries; the zero value takes every response and no piece.
type Filter struct {
	Session string // "" for all
	Pieces  bool   // the pieces too
}

func (f Filter) takes(l Line) bool {
	return (f.Session == "" || l.Session == f.Session) && (f.Pieces || l.Kind == KindResponse)
}

// Show writes the entries of the ledger at path, one a line: as JSON objects,
// or as columns for people.
func Show(out io.Writer, path string, f Filter, asJSON bool) error {
	encoder := json.NewEncoder(out)
	report, err := Read(path, func(l Line) error {
		switch {
		case !f.takes(l):
			return nil
		case asJSON:
			return encoder.Encode(l)
		}
		_, err := fmt.Fprintf(out, "%7d  %s  %.8s  %-4s  %-13s  %10d+%-10d  %-22s  %.16s  %s\n", l.Seq,
			time.UnixMilli(l.BeginMS).UTC().Format("2006-01-02 15:04:05.000"), dash(l.Session), l.Transport, l.Artefact,
			l.Offset, l.Length, resultOf(l), dash(l.SHA256), l.Client)
		return err
	})
	if err == nil && !asJSON && report.TornTail > 0 {
		_, err = fmt.Fprintf(out, "%d bytes follow that are not a whole record yet\n", report.TornTail)
	}
	return err
}

func resultOf(l Line) string {
	if l.Kind == KindPiece {
		return "(piece)"
	}
	return l.Result
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Verdict is what Verify found.
type Verdict struct {
	OK        bool   `json:"ok"`
	Path      string `json:"path"`
	Records   uint64 `json:"records"` // whole ones before the first broken one
	Responses uint64 `json:"responses"`
	Bytes     int64  `json:"bytes"` // that the responses sent
	Head      string `json:"head"`  // hash of the chain: keep it elsewhere to notice a cut or a rewritten ledger
	TornTail  int64  `json:"torn_tail"`
	BrokenSeq uint64 `json:"broken_record,omitempty"`
	BrokenAt  int64  `json:"broken_offset,omitempty"`
	Detail    string `json:"detail,omitempty"`
}

// Verify reads the whole ledger at path and checks its chain. The error is
// about the file as such; a ledger that does not hold is a Verdict.
func Verify(path string) (Verdict, error) {
	v := Verdict{Path: path}
	report, err := Read(path, func(l Line) error {
		if l.Kind == KindResponse {
			v.Responses++
			v.Bytes += l.Length
		}
		return nil
	})
	v.Records, v.TornTail, v.Head = report.Records, report.TornTail, report.Head.String()
	var broken *journal.BrokenError
	var entry *EntryError
	switch {
	case err == nil:
		v.OK = true
	case errors.As(err, &broken):
		v.BrokenSeq, v.BrokenAt, v.Detail = broken.Seq, broken.Offset, broken.Detail
	case errors.As(err, &entry):
		v.BrokenSeq, v.BrokenAt, v.Detail = report.Records+1, report.Valid, entry.Error()
	default:
		return v, err
	}
	return v, nil
}
