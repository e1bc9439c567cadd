package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"portcullis/agent/claim"
	v1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/protocol"
	"portcullis/images/manifest"
	"portcullis/lab"
	"portcullis/lab/attack"
)

// playedWindow is the claim window of the plays with a played PC.
const playedWindow = 5 * time.Second

// servedLimit bounds the fetch of all artefacts, also from an emulated Pi.
const servedLimit = time.Minute

// fetched asks for a boot and fetches all of it; started is when the played
// kernel says that it began.
func (s *Stage) fetched(ctx context.Context) (b *attack.Boot, f claim.Facts, started time.Time, err error) {
	if b, err = s.offered(ctx); err != nil {
		return
	}
	// The last byte is here before pxed has written down that it was sent.
	served, cancel := context.WithTimeout(ctx, servedLimit)
	defer cancel()
	mark := s.Log.Mark()
	if err = s.played().Fetch(ctx, b, manifest.UKI, io.Discard); err != nil {
		return
	}
	if _, err = s.Log.Wait(served, mark, lab.With("artefact.served", "artefact", manifest.UKI)); err != nil {
		return
	}
	started = time.Now()
	// Not the UKI again: that would be the moment from which pxed counts.
	for _, name := range []string{manifest.Envelope, manifest.Root} {
		if err = s.played().Fetch(ctx, b, name, io.Discard); err != nil {
			return
		}
	}
	if _, err = s.Log.Wait(served, mark, lab.With("session.served", "session", b.Session)); err != nil {
		return
	}
	f, err = s.facts(b)
	return
}

// claimAs claims with a fresh key; reason is why it was refused, "" when accepted.
func (s *Stage) claimAs(ctx context.Context, f claim.Facts, started time.Time) (a *attack.Agent, reason string, err error) {
	key, err := claim.NewKey()
	if err != nil {
		return nil, "", err
	}
	a, err = s.played().Claim(ctx, agentPort, f, key, started)
	var refused *attack.RefusedError
	if errors.As(err, &refused) {
		return nil, refused.Reason, nil
	}
	return a, "", err
}

// mustBeRefused claims and expects a refusal for reason.
func (s *Stage) mustBeRefused(ctx context.Context, f claim.Facts, started time.Time, reason string) error {
	a, got, err := s.claimAs(ctx, f, started)
	if err != nil {
		return err
	}
	if a != nil {
		a.Close()
		return fmt.Errorf("the claim was accepted, want refused for %s", reason)
	}
	if got != reason {
		return fmt.Errorf("refused for %s, want %s", got, reason)
	}
	return nil
}

func secondClaim() Scene {
	return Scene{
		Name: "second-claim", Title: "a second claim by another key voids both, alarms and quarantines",
		Run: func(ctx context.Context, s *Stage) error {
			mark := s.Log.Mark()
			b, f, started, err := s.fetched(ctx)
			if err != nil {
				return err
			}
			first, reason, err := s.claimAs(ctx, f, started)
			if err != nil || reason != "" {
				return fmt.Errorf("the first claim was refused: %s %v", reason, err)
			}
			defer first.Close()
			if err := s.mustBeRefused(ctx, f, started, "claim-double"); err != nil {
				return fmt.Errorf("second claim: %w", err)
			}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			for _, want := range []func(lab.Event) bool{
				lab.With("claim.double", "session", b.Session),
				lab.With("verdict", "state", "quarantined"),
				lab.With("phase", "phase", "quarantine"),
			} {
				if _, err := s.Log.Wait(ctx, mark, want); err != nil {
					return fmt.Errorf("alarm or quarantine is missing: %w; %s", err, s.Why(mark))
				}
			}
			session, err := s.Session(ctx)
			if err != nil {
				return err
			}
			if session.State != v1.SessionState_SESSION_STATE_VOID {
				return fmt.Errorf("the session is %s, want void", session.State)
			}
			return s.mustBeRefused(ctx, f, started, "session-void")
		},
	}
}

// copiedKey has another machine go on in the place of the agent, with its key.
func copiedKey() Scene {
	return Scene{
		Name: "copied-key", Title: "an agent that was moved to another machine with its key does not continue its epochs, and is refused",
		Run: func(ctx context.Context, s *Stage) error {
			mark := s.Log.Mark()
			_, f, started, err := s.fetched(ctx)
			if err != nil {
				return err
			}
			key, err := claim.NewKey()
			if err != nil {
				return err
			}
			copied := key.Copy()
			first, err := s.played().Claim(ctx, agentPort, f, key, started)
			if err != nil {
				return err
			}
			defer first.Close()
			// The epoch begins with the first evidence: until then it may be the same agent, trying again.
			if _, err := answered(ctx, first); err != nil {
				return err
			}
			second, err := s.played().Claim(ctx, agentPort, f, copied, started)
			var refused *attack.RefusedError
			if !errors.As(err, &refused) || refused.Reason != protocol.ClaimEpoch {
				if err == nil {
					second.Close()
				}
				return fmt.Errorf("the moved agent: %v, want refused for %s", err, protocol.ClaimEpoch)
			}
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			_, err = s.Log.Wait(ctx, mark, lab.With("finding", "reason", protocol.ClaimEpoch))
			return err
		},
	}
}

func lateClaim() Scene {
	return Scene{
		Name: "late-claim", Title: "a claim before the image is served whole, from an older kernel, or after the window is refused",
		Run: func(ctx context.Context, s *Stage) error {
			b, err := s.offered(ctx)
			if err != nil {
				return err
			}
			f, err := s.facts(b)
			if err != nil {
				return err
			}
			if err := s.mustBeRefused(ctx, f, time.Now(), "artefacts-incomplete"); err != nil {
				return fmt.Errorf("early: %w", err)
			}
			_, f, started, err := s.fetched(ctx)
			if err != nil {
				return err
			}
			if err := s.mustBeRefused(ctx, f, started.Add(-time.Hour), "uptime-impossible"); err != nil {
				return fmt.Errorf("a kernel that ran before it was served: %w", err)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(playedWindow + time.Second):
			}
			if err := s.mustBeRefused(ctx, f, started, "claim-late"); err != nil {
				return fmt.Errorf("late: %w", err)
			}
			return nil
		},
	}
}

// replayedEvidence answers one challenge and sends the same evidence for the
// next one, then, in a boot of its own, once more.
func replayedEvidence() Scene {
	return Scene{
		Name: "replayed-evidence", Title: "evidence sent again is refused as replayed, in another boot as unknown",
		Run: func(ctx context.Context, s *Stage) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			first, err := s.claimed(ctx)
			if err != nil {
				return err
			}
			defer first.Close()
			old, err := answered(ctx, first)
			if err != nil {
				return err
			}
			if err := s.sendOld(ctx, first, old, protocol.EvidenceReplayed); err != nil {
				return err
			}
			second, err := s.claimed(ctx)
			if err != nil {
				return err
			}
			defer second.Close()
			if _, err := second.Challenge(ctx); err != nil {
				return err
			}
			return s.sendOld(ctx, second, old, protocol.EvidenceUnknown)
		},
	}
}

// answered answers one challenge, and returns the evidence when the next one has come.
func answered(ctx context.Context, a *attack.Agent) (*protocol.Evidence, error) {
	c, err := a.Challenge(ctx)
	if err != nil {
		return nil, err
	}
	e := a.Evidence(c)
	if err := a.SendEvidence(e); err != nil {
		return nil, err
	}
	if _, err := a.Challenge(ctx); err != nil {
		return nil, fmt.Errorf("no second challenge: %w", err)
	}
	return e, nil
}

func (s *Stage) claimed(ctx context.Context) (*attack.Agent, error) {
	_, f, started, err := s.fetched(ctx)
	if err != nil {
		return nil, err
	}
	a, reason, err := s.claimAs(ctx, f, started)
	if reason != "" {
		err = errors.Join(err, fmt.Errorf("refused: %s", reason))
	}
	return a, err
}

func (s *Stage) sendOld(ctx context.Context, a *attack.Agent, old *protocol.Evidence, reason string) error {
	mark := s.Log.Mark()
	if err := a.SendEvidence(old); err != nil {
		return err
	}
	if _, err := s.Log.Wait(ctx, mark, lab.With("finding", "reason", reason)); err != nil {
		return fmt.Errorf("no finding %s: %w; %s", reason, err, s.Why(mark))
	}
	return nil
}
