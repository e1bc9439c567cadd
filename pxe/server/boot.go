package server

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	api "portcullis/api/portcullis/v1"
	"portcullis/pxe/session"
)

// boot is the Boot service of the API over the session manager.
type boot struct{ sessions *session.Manager }

// maxUptime keeps a claimed uptime inside a time.Duration.
const maxUptime = 365 * 24 * time.Hour

// Claim decides on a claim.
func (b boot) Claim(ctx context.Context, r *connect.Request[api.ClaimRequest]) (*connect.Response[api.ClaimResponse], error) {
	uptime := maxUptime
	if ms := r.Msg.GetUptimeMs(); ms < maxUptime.Milliseconds() {
		uptime = max(time.Duration(ms), -1) * time.Millisecond
	}
	reason, s := b.sessions.Claim(ctx, session.Claim{
		Session: r.Msg.GetSession(), Key: r.Msg.GetPublicKey(), Manifest: r.Msg.GetManifestDigest(), Uptime: uptime,
	})
	return connect.NewResponse(&api.ClaimResponse{Accepted: reason == "", Reason: reason, Session: message(s)}), nil
}

// GetSession returns one session, or the newest.
func (b boot) GetSession(_ context.Context, r *connect.Request[api.GetSessionRequest]) (*connect.Response[api.GetSessionResponse], error) {
	s, ok := b.sessions.Newest()
	if id := r.Msg.GetId(); id != "" {
		s, ok = b.sessions.Find(id)
	}
	if !ok {
		return nil, connect.NewError(connect.CodeNotFound, errors.New(session.ReasonUnknown))
	}
	return connect.NewResponse(&api.GetSessionResponse{Session: message(s)}), nil
}

// WatchSessions sends the newest session, then every change. Where there is
// none yet the first message is empty: it tells the caller that it is heard.
func (b boot) WatchSessions(ctx context.Context, _ *connect.Request[api.WatchSessionsRequest], out *connect.ServerStream[api.WatchSessionsResponse]) error {
	changes, stop := b.sessions.Watch()
	defer stop()
	if _, ok := b.sessions.Newest(); !ok {
		if err := out.Send(&api.WatchSessionsResponse{}); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, ok := <-changes:
			if !ok {
				return connect.NewError(connect.CodeResourceExhausted, errors.New("too far behind: watch again"))
			}
			if err := out.Send(&api.WatchSessionsResponse{Session: message(s)}); err != nil {
				return err
			}
		}
	}
}

var states = map[session.State]api.SessionState{
	session.Offered: api.SessionState_SESSION_STATE_OFFERED, session.Fetching: api.SessionState_SESSION_STATE_FETCHING,
	session.Served: api.SessionState_SESSION_STATE_SERVED, session.Claimed: api.SessionState_SESSION_STATE_CLAIMED,
	session.Void: api.SessionState_SESSION_STATE_VOID, session.Ended: api.SessionState_SESSION_STATE_ENDED,
}

func message(s session.Session) *api.Session {
	m := &api.Session{
		Id: s.ID, Mac: s.MAC, Firmware: string(s.Firmware), State: states[s.State], Reason: s.Reason,
		OpenedMs: milli(s.Opened), LastByteMs: milli(s.LastByte), ClaimedMs: milli(s.ClaimedAt),
		ClaimKey: s.ClaimKey, ManifestDigest: s.Manifest[:],
	}
	if s.Address.IsValid() {
		m.Address = s.Address.String()
	}
	for _, p := range s.Artefacts {
		m.Artefacts = append(m.Artefacts, &api.ArtefactProgress{Name: p.Name, Size: p.Size, Covered: p.Covered, Transport: p.Transport})
	}
	return m
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
