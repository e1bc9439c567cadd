// Package action carries out what the rules of package policy lead to. Every action is in
// the journal before it begins and after it ended; one that was begun and not ended
// when the process died is done again, or settled where its boot session is over.
// Every action can be done twice. attestserver/server posts, and is never kept waiting:
// each kind of action has a queue and a goroutine of its own.
package action

import (
	"context"
	"encoding/hex"
	"time"

	"portcullis/attestserver/policy"
)

// Results of an action.
const (
	ResultDone    = "done"
	ResultFailed  = "failed"
	ResultSettled = "settled" // nothing was left to do
	ResultDryRun  = "dry-run"
)

// Why an action ended otherwise than by being done.
const (
	ReasonSessionOver = "action-session-over" // a new boot session has begun: it meant the old one
	ReasonMerged      = "action-merged"       // another one takes this PC down already
	ReasonQueueFull   = "action-queue-full"
	ReasonNoRung      = "action-no-rung" // no rung of the ladder took the PC down
	ReasonUndelivered = "webhook-undelivered"
	ReasonNoTarget    = "webhook-unknown" // begun in an earlier life, its address is no longer configured
)

// PC is what the ladder sees of the PC, and the way to its agent. Methods may be
// called concurrently.
type PC interface {
	// Session is the newest boot session, "" while none is known.
	Session() string
	// Agent tells whether the agent's channel is up.
	Agent() bool
	// Down sends the agent a signed message. It returns when that is on its way.
	Down(ctx context.Context, id [16]byte, session string, off bool) error
}

// ID names one action. It is random, and the same in journal, events, webhook
// and agent channel.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

func parseID(s string) (id ID, ok bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, false
	}
	return ID(b), true
}

// job is one action that was begun.
type job struct {
	id      ID
	rule    string
	action  policy.Action
	target  string // of a webhook
	session string
	time    time.Time
	claims  policy.Claims
	rung    string // of the ladder, that an earlier life was on
}

// outcome is how a job ended.
type outcome struct{ result, reason, detail string }

func done(detail string) outcome            { return outcome{ResultDone, "", detail} }
func failed(reason, detail string) outcome  { return outcome{ResultFailed, reason, detail} }
func settled(reason, detail string) outcome { return outcome{ResultSettled, reason, detail} }
