package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"portcullis/lab"
	"portcullis/lab/world"
)

const grantFor = 15 * time.Second

// grantScene adds a grant by the operator's own command, uses it from the PC and
// sees it end, also for the connection that it had opened.
func grantScene() Scene {
	return Scene{
		Name: "grant", Title: "a granted connection works, opens nothing else, and stops at its end", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			before, err := s.World(ctx)
			if err != nil {
				return err
			}
			mark := s.Log.Mark()
			out, err := s.Run(ctx, "portcullis", "grant", "add", "--run-dir", s.RunDir(), "--json",
				"--to", "203.0.113.10:80/tcp", "--for", grantFor.String(), "--task", "lab-task")
			if err != nil {
				return fmt.Errorf("grant add: %w", err)
			}
			var grant map[string]any
			if json.Unmarshal(out, &grant) != nil {
				return fmt.Errorf("grant add printed no JSON: %q", out)
			}
			if got, err := s.command(ctx, hpcLab, "send", "tcp", "203.0.113.10:80", "GET"); err != nil || got != world.WebText {
				return fmt.Errorf("the granted connection does not work: %q, %w", got, err)
			}
			if err := s.try(ctx, forbidden{"another port", tool("send", "udp", "203.0.113.10:7"), "udp"}); err != nil {
				return err
			}
			endCtx, cancel := context.WithTimeout(ctx, 3*grantFor)
			defer cancel()
			// A connection that stands when the grant ends: hpc-lab holds it open and
			// asks again afterwards.
			held := make(chan error, 1)
			go func() {
				r, err := s.Exec(endCtx, hpcLab, "hold", "203.0.113.10:80", (grantFor + time.Second).String())
				if err == nil && r.Exit == 0 {
					err = fmt.Errorf("an open connection outlived its grant: %q", r.Stdout)
				} else if err == nil && (len(r.Stdout) == 0 || !strings.Contains(string(r.Stderr), "no answer after")) {
					err = fmt.Errorf("the held connection ended otherwise: %s", r.Stderr)
				}
				held <- err
			}()
			if _, err := s.Log.Wait(endCtx, mark, lab.Is("grant.ended")); err != nil {
				return fmt.Errorf("the grant does not end: %w", err)
			}
			if err := <-held; err != nil {
				return err
			}
			if err := s.try(ctx, forbidden{"TCP after the end", tool("send", "tcp", "203.0.113.10:80"), "tcp"}); err != nil {
				return err
			}
			after, err := s.World(ctx)
			if err != nil {
				return err
			}
			if n := after.Web - before.Web; n != 2 {
				return fmt.Errorf("the web server saw %d connections, want 2", n)
			}
			if after.Echo != before.Echo || after.DNS != before.DNS {
				return fmt.Errorf("something else than the grant came through: %+v", after)
			}
			return s.untilUnbanned(ctx)
		},
	}
}
