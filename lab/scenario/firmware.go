package scenario

import (
	"context"
	"fmt"
	"time"

	"portcullis/lab"
	"portcullis/lab/qemu"
)

// TrustedPrefix begins the name of the scene that boots with one firmware.
const TrustedPrefix = "trusted-"

// trusted is the main claim: this firmware, a signed image, a claim, answers that
// are right, and the verdict.
func trusted(firmware qemu.Firmware) Scene { return trustedAt(firmware, "T0") }

// trustedAt is trusted at a tier: T1 where the PC has a TPM.
func trustedAt(firmware qemu.Firmware, tier string) Scene {
	return Scene{
		Name:  TrustedPrefix + string(firmware),
		Title: fmt.Sprintf("a PC with %s boots from the wire and is trusted", firmware),
		Run: func(ctx context.Context, s *Stage) error {
			mark, began := s.Log.Mark(), time.Now()
			verdict, err := s.Boot(ctx, BootLimit)
			if err != nil {
				return fmt.Errorf("%w\nconsole:\n%s", err, s.Console())
			}
			s.Note("trusted %.1f s after power-on", time.Since(began).Seconds())
			opened, err := s.Log.Wait(ctx, mark, lab.Is("session.opened"))
			if err != nil {
				return err
			}
			if got := opened.Text("firmware"); got != string(firmware) {
				return fmt.Errorf("pxed took the firmware for %q", got)
			}
			if got := verdict.Text("tier"); got != tier {
				return fmt.Errorf("the verdict's tier is %q, want %s", got, tier)
			}
			v, err := s.Verdict(ctx)
			if err != nil {
				return err
			}
			if !v.LabImage {
				return fmt.Errorf("the verdict does not tell that this is a lab image")
			}
			if v.Posture == "" {
				return fmt.Errorf("the verdict has no posture")
			}
			if out, err := s.Run(ctx, "portcullis", "ledger", "verify", "--state", s.StateFile("")); err != nil {
				return fmt.Errorf("the served-ledger does not verify: %w: %s", err, out)
			}
			return nil
		},
	}
}
