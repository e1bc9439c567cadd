package scenario

import (
	"context"
	"fmt"
	"strings"
	"time"

	"portcullis/lab"
)

// killedInBoot kills a service with SIGKILL while the root image is on its way.
// Deny must stand at every moment, and the boot must end in trust, in the same
// session or in a new one.
func killedInBoot(service string) Scene {
	return Scene{
		Name:  service + "-killed",
		Title: service + " killed with -9 in mid-boot: deny stays, and the boot ends well or starts anew",
		Run: func(ctx context.Context, s *Stage) error {
			before, err := s.World(ctx)
			if err != nil {
				return err
			}
			s.PowerCut()
			mark := s.Log.Mark()
			if err := s.PowerOn(ctx); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, BootLimit)
			defer cancel()
			opened, err := s.Log.Wait(ctx, mark, lab.Is("session.opened"))
			if err != nil {
				return fmt.Errorf("no boot request: %w", err)
			}
			if _, err := s.Log.Wait(ctx, mark, lab.With("artefact.started", "artefact", "root.img")); err != nil {
				return fmt.Errorf("the boot does not reach the root image: %w; %s", err, s.Why(mark))
			}
			if err := s.KillService(ctx, service, true); err != nil {
				return err
			}
			if err := s.denies(ctx); err != nil {
				return fmt.Errorf("while %s is dead: %w", service, err)
			}
			if err := s.ReleaseService(ctx, service); err != nil {
				return err
			}
			if err := s.denies(ctx); err != nil {
				return fmt.Errorf("after %s came back: %w", service, err)
			}
			verdict, err := s.UntilTrusted(ctx, mark)
			if err != nil {
				return fmt.Errorf("%w\nconsole:\n%s", err, s.Console())
			}
			after, err := s.World(ctx)
			if err != nil {
				return err
			}
			if n := after.Frames - before.Frames; n != 0 {
				return fmt.Errorf("%d frames came out behind the gateway: %v", n, after.Records[len(before.Records):])
			}
			how := "in the same session"
			if verdict.Text("session") != opened.Text("session") {
				how = "in a new session"
			}
			s.Note("trusted %s", how)
			return nil
		},
	}
}

// denies looks at the rules in the kernel: every chain that forwards for the
// PC's port must be there. It asks nft, which knows nothing of our code.
func (s *Stage) denies(ctx context.Context) error {
	port, _, err := s.PCPort()
	if err != nil {
		return err
	}
	out, err := s.Run(ctx, "nft", "list", "ruleset")
	if err != nil {
		return err
	}
	rules := string(out)
	for _, want := range []string{
		"type filter hook forward", "type filter hook input", "type filter hook ingress device \"" + port + "\"",
		"iifname \"" + port + "\" goto forward-from-pc",
	} {
		if !strings.Contains(rules, want) {
			return fmt.Errorf("the firewall has no rule %q", want)
		}
	}
	return nil
}

// attestdRestart kills attestd beside a trusted PC: belief begins at unknown and
// comes back without a boot.
func attestdRestart() Scene {
	return Scene{
		Name: "attestd-restart", Title: "attestd killed beside a trusted PC: unknown, then trusted again without a boot", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			session, err := s.Session(ctx)
			if err != nil {
				return err
			}
			mark, began := s.Log.Mark(), time.Now()
			if err := s.KillService(ctx, "attestd", false); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			e, err := s.Log.Wait(ctx, mark, lab.With("verdict", "state", "trusted"))
			if err != nil {
				return fmt.Errorf("not trusted again: %w; %s", err, s.Why(mark))
			}
			if e.Text("session") != session.Id {
				return fmt.Errorf("trusted in another session")
			}
			if e.Text("from") != "unknown" {
				return fmt.Errorf("the verdict came from %q, want unknown", e.Text("from"))
			}
			for _, e := range s.Log.Since(mark) {
				if e.Name == "session.opened" {
					return fmt.Errorf("the PC was booted anew")
				}
			}
			s.Note("trusted again after %.1f s", time.Since(began).Seconds())
			return nil
		},
	}
}

// denyOutlivesGateway kills gatewayd beside a trusted PC with a grant and tries
// the forbidden and the granted while it is dead: invariant 1.
func denyOutlivesGateway() Scene {
	return Scene{
		Name: "gatewayd-dead", Title: "gatewayd killed and kept dead beside a trusted PC: forbidden traffic still goes nowhere", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			before, err := s.World(ctx)
			if err != nil {
				return err
			}
			if err := s.KillService(ctx, "gatewayd", true); err != nil {
				return err
			}
			tried := s.tryAll(ctx)
			mark := s.Log.Mark()
			if err := s.ReleaseService(ctx, "gatewayd"); err != nil {
				return err
			}
			if tried != nil {
				return tried
			}
			after, err := s.World(ctx)
			if err != nil {
				return err
			}
			if n := after.Frames - before.Frames; n != 0 {
				return fmt.Errorf("%d frames came out behind the gateway: %v", n, after.Records[len(before.Records):])
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if _, err := s.Log.Wait(ctx, mark, lab.With("phase", "phase", "run")); err != nil {
				return fmt.Errorf("gatewayd does not come back to its phase: %w", err)
			}
			return s.untilUnbanned(ctx)
		},
	}
}

func (s *Stage) tryAll(ctx context.Context) error {
	for _, f := range forbiddenThings {
		if err := s.try(ctx, f); err != nil {
			return err
		}
	}
	return nil
}
