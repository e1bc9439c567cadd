package action

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/policy"
	"portcullis/internal/clock"
	"portcullis/internal/event"
)

// Options of Open. Relay, Hook and Webhooks may be missing.
type Options struct {
	Journal  string // path
	PC       PC
	Gateway  portcullisv1connect.GatewayClient
	Relay    portcullisv1connect.PowerClient
	Hook     portcullisv1connect.PowerClient
	Webhooks []*Target
	Ladder   Ladder
	Events   *event.Writer
	Clock    clock.Clock
	Random   io.Reader // crypto/rand outside of tests
}

// queueLimit bounds each queue. Cooldowns keep honest policies far below it.
const queueLimit = 256

// Engine carries out actions.
type Engine struct {
	o      Options
	ledger *ledger

	mu      sync.Mutex // the ledger, and power
	power   string     // session that is being taken down
	broken  error      // of the journal
	failure chan struct{}

	gate  *queue // stop_task and quarantine
	down  *queue
	hooks map[string]*queue
}

// Open opens or makes the journal and takes up what an earlier life left.
func Open(o Options) (*Engine, error) {
	if o.PC == nil || o.Gateway == nil || o.Events == nil || o.Clock == nil || o.Random == nil || o.Journal == "" {
		return nil, errors.New("actions: options are incomplete")
	}
	if err := o.Ladder.check(); err != nil {
		return nil, err
	}
	l, err := openLedger(o.Journal)
	if err != nil {
		return nil, err
	}
	e := &Engine{o: o, ledger: l, failure: make(chan struct{}), gate: newQueue(queueLimit), down: newQueue(queueLimit), hooks: map[string]*queue{}}
	for _, t := range o.Webhooks {
		e.hooks[t.Name] = newQueue(queueLimit)
	}
	for _, j := range l.left() {
		e.o.Events.Emit("action.resumed", event.Fields{"id": j.id.String(), "rule": j.rule, "action": string(j.action), "session": j.session})
		e.submit(j)
	}
	if err := e.err(); err != nil {
		l.journal.Close()
		return nil, err
	}
	return e, nil
}

// Fired tells when a rule fired last, in any life; the zero time if it never did.
func (e *Engine) Fired(rule string) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ledger.fired[rule]
}

// Close closes the journal. Run must have ended.
func (e *Engine) Close() error { return e.ledger.journal.Close() }

// Post begins the actions of a rule that fired. When it returns they are in the
// journal; an error means that they may not be, and that nothing more can be.
func (e *Engine) Post(f policy.Firing) error {
	for _, a := range f.Rule.Then {
		targets := []string{""}
		if a == policy.Webhook {
			targets = nil
			for _, t := range e.o.Webhooks {
				targets = append(targets, t.Name)
			}
		}
		for _, target := range targets {
			j := &job{rule: f.Rule.Name, action: a, target: target, session: f.Claims.Session, time: f.Time, claims: bounded(f.Claims)}
			if _, err := io.ReadFull(e.o.Random, j.id[:]); err != nil {
				return fmt.Errorf("actions: %w", err)
			}
			e.begin(j)
			if f.Rule.DryRun {
				e.end(j, outcome{result: ResultDryRun})
			} else {
				e.submit(j)
			}
		}
	}
	return e.err()
}

func (e *Engine) begin(j *job) {
	r := e.record(j, stateBegun)
	r.Claims = &j.claims
	e.write(r)
	e.mu.Lock()
	e.ledger.fired[j.rule] = j.time
	e.mu.Unlock()
	e.o.Events.Emit("action.begun", event.Fields{"id": j.id.String(), "rule": j.rule, "action": string(j.action), "target": j.target, "session": j.session})
}

// submit hands j to the one who does it.
func (e *Engine) submit(j *job) {
	q := e.gate
	switch j.action {
	case policy.Report:
		e.report(j)
		return
	case policy.Webhook:
		if q = e.hooks[j.target]; q == nil {
			e.end(j, failed(ReasonNoTarget, "no webhook is named "+j.target))
			return
		}
	case policy.Reboot, policy.PowerOff:
		if !e.claimPower(j) {
			e.end(j, settled(ReasonMerged, "another action takes this PC down already"))
			return
		}
		q = e.down
	}
	if !q.put(j) {
		e.releasePower(j)
		e.end(j, failed(ReasonQueueFull, fmt.Sprintf("%d actions wait already", queueLimit)))
	}
}

// claimPower lets one action at a time take the PC of a session down.
func (e *Engine) claimPower(j *job) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.power == j.session && j.session != "" {
		return false
	}
	e.power = j.session
	return true
}

func (e *Engine) releasePower(j *job) {
	if !j.action.Power() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.power == j.session {
		e.power = ""
	}
}

// Run works until ctx ends or the journal cannot be written.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	work := func(q *queue, do func(context.Context, *job) outcome) {
		q.open(func() {
			group.Go(func() {
				for j := q.take(ctx); j != nil; j = q.take(ctx) {
					o := do(ctx, j)
					if ctx.Err() != nil && o.result != ResultDone {
						return // it stays open, and the next life takes it up
					}
					e.releasePower(j)
					e.end(j, o)
				}
			})
		})
	}
	work(e.gate, e.atGateway)
	work(e.down, e.takeDown)
	for _, t := range e.o.Webhooks {
		work(e.hooks[t.Name], func(ctx context.Context, j *job) outcome { return e.deliver(ctx, t, j) })
	}
	select {
	case <-ctx.Done():
	case <-e.failure:
		cancel()
	}
	for _, q := range e.queues() {
		q.open(nil) // before the wait: none begins behind it
	}
	group.Wait()
	return e.err()
}

func (e *Engine) queues() []*queue {
	return slices.AppendSeq([]*queue{e.gate, e.down}, maps.Values(e.hooks))
}

// report is done on the spot. After a crash it may be told twice, under one id.
func (e *Engine) report(j *job) {
	c := &j.claims
	var findings []string
	for _, f := range c.Findings {
		if len(findings) < 8 {
			findings = append(findings, f.Probe+": "+f.Reason)
		}
	}
	e.o.Events.Emit("policy.report", event.Fields{"id": j.id.String(), "rule": j.rule, "session": j.session, "state": c.State, "reason": c.Reason,
		"tier": c.Tier, "posture": c.Posture, "findings": findings})
	e.end(j, done(""))
}

func (e *Engine) record(j *job, state string) Record {
	return Record{Time: e.o.Clock.Now().UTC().Format(timeForm), ID: j.id.String(), State: state, Rule: j.rule, Action: j.action,
		Target: j.target, Session: j.session}
}

func (e *Engine) end(j *job, o outcome) {
	r := e.record(j, stateEnded)
	r.Result, r.Reason, r.Detail = o.result, o.reason, o.detail
	e.write(r)
	e.o.Events.Emit("action.ended", event.Fields{"id": j.id.String(), "rule": j.rule, "action": string(j.action), "target": j.target,
		"session": j.session, "result": o.result, "reason": o.reason, "detail": o.detail, "seconds": e.o.Clock.Now().Sub(j.time).Seconds()})
}

// write keeps the first error: an action that cannot be recorded ends the engine.
func (e *Engine) write(r Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.broken != nil {
		return
	}
	if e.broken = e.ledger.write(r); e.broken != nil {
		close(e.failure)
	}
}

func (e *Engine) err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.broken
}

// pause waits; false means that ctx has ended.
func (e *Engine) pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-e.o.Clock.After(d):
		return true
	}
}
