package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis/lab"
)

// powerCycle takes the power from a trusted PC that has a grant and gives it back.
// The events of both services carry the same clock, so their order can be judged:
// trust and grant end before the offer is sent (invariant 4).
func powerCycle() Scene {
	return Scene{
		Name: "power-cycle", Title: "a PC killed and power-cycled: its trust ends before the new offer", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			old, err := s.Session(ctx)
			if err != nil {
				return err
			}
			if _, err := s.Run(ctx, "portcullis", "grant", "add", "--run-dir", s.RunDir(), "--json",
				"--to", "203.0.113.10:80/tcp", "--for", "10m", "--task", "lab-task"); err != nil {
				return err
			}
			mark := s.Log.Mark()
			s.PowerCut()
			began := time.Now()
			verdict, err := s.Boot(ctx, BootLimit)
			if err != nil {
				return err
			}
			if verdict.Text("session") == old.Id {
				return errors.New("trusted in the old session")
			}
			opened, offer, err := s.endThenOffer(mark)
			if err != nil {
				return err
			}
			ended, err := s.first(mark, lab.Is("grant.ended"))
			if err != nil {
				return err
			}
			if ended.Time.After(offer.Time) {
				return errors.New("the grant outlived the offer")
			}
			g, err := s.Gateway(ctx)
			if err != nil {
				return err
			}
			if len(g.Grants) != 0 {
				return fmt.Errorf("%d grants survive the boot", len(g.Grants))
			}
			s.Note("trust ended %.1f ms before the offer; trusted again %.1f s after power-on",
				float64(offer.Time.Sub(opened.Time).Microseconds())/1000, time.Since(began).Seconds())
			return nil
		},
	}
}

// first returns the first event since mark that match accepts.
func (s *Stage) first(mark int, match func(lab.Event) bool) (lab.Event, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	e, err := s.Log.Wait(ctx, mark, match)
	if err != nil {
		return e, fmt.Errorf("an event is missing: %w; %s", err, s.Why(mark))
	}
	return e, nil
}

// endThenOffer holds that trust has ended, since mark, before the PC was offered anything.
func (s *Stage) endThenOffer(mark int) (opened, offer lab.Event, err error) {
	if opened, err = s.first(mark, lab.With("phase", "phase", "boot")); err != nil {
		return opened, offer, err
	}
	if offer, err = s.first(mark, lab.With("dhcp.reply", "type", "offer")); err == nil && opened.Time.After(offer.Time) {
		err = fmt.Errorf("the offer at %s came before the end of trust at %s", offer.Time.Format(time.StampMicro), opened.Time.Format(time.StampMicro))
	}
	return opened, offer, err
}
