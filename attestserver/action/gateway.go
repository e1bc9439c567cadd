package action

import (
	"context"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/policy"
)

// Waits between calls that failed, and the time of one.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
	callTime   = 2 * time.Second
)

// atGateway has gatewayd quarantine the session, or end its tasks' grants, again and
// again until it is done or the session is over.
func (e *Engine) atGateway(ctx context.Context, j *job) outcome {
	do := e.stopTasks
	if j.action == policy.Quarantine {
		do = e.quarantine
	}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		o, err := e.once(ctx, j, do)
		if err == nil {
			return o
		}
		if !e.pause(ctx, wait) {
			return failed("", ctx.Err().Error())
		}
	}
}

func (e *Engine) once(ctx context.Context, j *job, do func(context.Context, *job) (outcome, error)) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return do(ctx, j)
}

func (e *Engine) quarantine(ctx context.Context, j *job) (outcome, error) {
	_, err := e.o.Gateway.SetPhase(ctx, connect.NewRequest(&portcullisv1.SetPhaseRequest{
		Session: j.session, Phase: portcullisv1.Phase_PHASE_QUARANTINE, Reason: "policy"}))
	switch connect.CodeOf(err) {
	case connect.CodeFailedPrecondition:
		return settled(ReasonSessionOver, err.Error()), nil
	case connect.CodeInvalidArgument:
		return failed("", err.Error()), nil
	}
	return done("gatewayd enforces it"), err
}

// stopTasks revokes every grant. Grants are of the current session: one that has begun since
// then begins without any, and what it got later is not meant.
func (e *Engine) stopTasks(ctx context.Context, j *job) (outcome, error) {
	status, err := e.o.Gateway.GetGatewayStatus(ctx, connect.NewRequest(&portcullisv1.GetGatewayStatusRequest{}))
	if err != nil {
		return outcome{}, err
	}
	if status.Msg.Session != j.session {
		return settled(ReasonSessionOver, "its grants ended with it"), nil
	}
	for _, g := range status.Msg.Grants {
		_, err := e.o.Gateway.RevokeGrant(ctx, connect.NewRequest(&portcullisv1.RevokeGrantRequest{Id: g.Id}))
		if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
			return outcome{}, err
		}
	}
	return done("grants revoked"), nil
}
