package action

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"portcullis/attestserver/policy"
	"portcullis/internal/journal"
)

// States of a record.
const (
	stateBegun = "begun"
	stateStep  = "step" // a rung of the ladder: without a result when it begins
	stateEnded = "ended"
)

// Record is one record of the journal of actions.
type Record struct {
	Time    string         `json:"time"` // RFC 3339, milliseconds
	ID      string         `json:"id"`   // 16 bytes, hex
	State   string         `json:"state"`
	Rule    string         `json:"rule"`
	Action  policy.Action  `json:"action"`
	Target  string         `json:"target,omitempty"` // name of the webhook
	Session string         `json:"session"`
	Rung    string         `json:"rung,omitempty"`
	Result  string         `json:"result,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Detail  string         `json:"detail,omitempty"`
	Claims  *policy.Claims `json:"claims,omitempty"` // with begun: what the rule saw
}

// What of the claims is kept: a record has at most journal.MaxPayload bytes, and a hostile
// PC has a say in the texts.
const (
	keptFindings = 16
	keptWarnings = 4
	keptTasks    = 16
	keptText     = 128 // bytes; each may become six as JSON
)

// bounded keeps the newest findings, and the first of the other lists.
func bounded(c policy.Claims) policy.Claims {
	c.Findings = slices.Clone(c.Findings[:min(len(c.Findings), keptFindings)])
	for i := range c.Findings {
		f := &c.Findings[i]
		f.Probe, f.Reason, f.Detail = cut(f.Probe), cut(f.Reason), cut(f.Detail)
	}
	c.Warnings = slices.Clone(c.Warnings[:min(len(c.Warnings), keptWarnings)])
	for i := range c.Warnings {
		c.Warnings[i] = cut(c.Warnings[i])
	}
	c.Tasks = c.Tasks[:min(len(c.Tasks), keptTasks)]
	return c
}

func cut(s string) string { return strings.ToValidUTF8(s[:min(len(s), keptText)], "") }

const timeForm = "2006-01-02T15:04:05.000Z"

// maxDetail bounds what a hostile answer puts into the journal, in bytes.
const maxDetail = 512

// ParseRecord reads one record.
func ParseRecord(payload []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(payload, &r); err != nil {
		return r, fmt.Errorf("action record: %w", err)
	}
	if _, ok := parseID(r.ID); !ok {
		return r, fmt.Errorf("action record: id %.40q", r.ID)
	}
	if _, err := time.Parse(timeForm, r.Time); err != nil {
		return r, fmt.Errorf("action record: %w", err)
	}
	switch r.State {
	case stateStep, stateEnded:
	case stateBegun:
		if r.Claims == nil {
			return r, fmt.Errorf("action record: begun without claims")
		}
	default:
		return r, fmt.Errorf("action record: state %.20q", r.State)
	}
	return r, nil
}

// ledger is the journal with what is remembered of it: what is open, and when each rule fired.
type ledger struct {
	journal *journal.Journal
	open    map[ID]*job
	order   []ID
	fired   map[string]time.Time
}

func openLedger(path string) (*ledger, error) {
	l := &ledger{open: map[ID]*job{}, fired: map[string]time.Time{}}
	j, _, err := journal.Open(path, func(rec journal.Record) error {
		r, err := ParseRecord(rec.Payload)
		if err != nil {
			return err
		}
		l.remember(r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("actions: %w", err)
	}
	l.journal = j
	return l, nil
}

func (l *ledger) remember(r Record) {
	id, _ := parseID(r.ID)
	at, _ := time.Parse(timeForm, r.Time)
	switch r.State {
	case stateBegun:
		l.open[id] = &job{id: id, rule: r.Rule, action: r.Action, target: r.Target, session: r.Session, time: at, claims: *r.Claims}
		l.order = append(l.order, id)
		l.fired[r.Rule] = at
	case stateStep:
		if j := l.open[id]; j != nil {
			j.rung = r.Rung
		}
	case stateEnded:
		delete(l.open, id)
	}
}

// left are the jobs that an earlier life did not end, oldest first.
func (l *ledger) left() (jobs []*job) {
	for _, id := range l.order {
		if j := l.open[id]; j != nil {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// write appends r. The kernel has it when write returns.
func (l *ledger) write(r Record) error {
	r.Detail = strings.ToValidUTF8(r.Detail[:min(len(r.Detail), maxDetail)], "")
	b, err := json.Marshal(r)
	if err == nil {
		_, err = l.journal.Append(b)
	}
	if err != nil {
		return fmt.Errorf("actions: %w", err)
	}
	return nil
}
