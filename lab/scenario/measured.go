package scenario

import (
	"context"
	"errors"
	"fmt"

	"portcullis/lab"
)

// alteredBoot is a PC with a TPM, whose owner has its firmware add to the signed command
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
