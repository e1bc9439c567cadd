package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis/lab"
)

// measuredBoot is tier T1: the PC's chip has signed that firmware loaded the image
// and nothing else, with the registers that the manifest predicts.
func measuredBoot() Scene {
	return Scene{
		Name: "measured-boot", Title: "a PC with a TPM is enrolled and trusted at T1", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			began := time.Now()
			ctx, cancel := context.WithTimeout(ctx, attackLimit)
			defer cancel()
			if _, err := s.Log.Wait(ctx, 0, lab.With("enrol", "reference", "tpm")); err != nil {
				return fmt.Errorf("the chip was not enrolled: %w; %s", err, s.Why(0))
			}
			if _, err := s.Log.Wait(ctx, 0, lab.With("verdict", "tier", "T1")); err != nil {
				return fmt.Errorf("no verdict of tier T1: %w; %s", err, s.Why(0))
			}
			v, err := s.Verdict(ctx)
			if err != nil {
				return err
			}
			if v.State != Trusted || v.Tier != "T1" {
				return fmt.Errorf("%v at %s", v.State, v.Tier)
			}
			for _, e := range s.Log.Since(0) {
				if e.Name == "finding" && e.Text("class") != "info" {
					return fmt.Errorf("an honest PC is accused: %s", e.Text("detail"))
				}
			}
			s.Note("T1 after %.1f s more", time.Since(began).Seconds())
			return nil
		},
	}
}

// alteredBoot is the same PC, whose owner has its firmware add to the signed command
// line. The kernel obeys; registers 9 and 12 show it, whatever the agent says.
func alteredBoot() Scene {
	return Scene{
		Name: "altered-boot", Title: "a PC with a TPM that boots with an altered command line is never trusted",
		Run: func(ctx context.Context, s *Stage) error {
			s.PowerCut()
			defer s.PowerCut()
			mark := s.Log.Mark()
			ctx, cancel := context.WithTimeout(ctx, BootLimit)
			defer cancel()
			if err := s.PowerOnWith(ctx, "io.systemd.stub.kernel-cmdline-extra=init_on_free=0"); err != nil {
				return err
			}
			opened, err := s.Log.Wait(ctx, mark, lab.Is("session.opened"))
			if err != nil {
				return fmt.Errorf("no boot request: %w", err)
			}
			if _, err := s.Log.Wait(ctx, mark, func(e lab.Event) bool {
				return e.Name == "verdict" && e.Text("state") == "quarantined" && e.Text("session") == opened.Text("session")
			}); err != nil {
				return fmt.Errorf("not quarantined: %w; %s", err, s.Why(mark))
			}
			found := false
			for _, e := range s.Log.Since(mark) {
				if e.Name == "verdict" && e.Text("state") == "trusted" {
					return errors.New("it was trusted")
				}
				if e.Name == "finding" && e.Text("reason") == "tpm-register" {
					found = true
					s.Note("%s", e.Text("detail"))
				}
			}
			if !found {
				return fmt.Errorf("the chip's registers did not show it; %s", s.Why(mark))
			}
			return nil
		},
	}
}
