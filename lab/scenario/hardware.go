package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"portcullis/lab"
)

// changedHardware takes the PC off and puts it back with another card, another
// serial number and a second disk, then with another firmware. Each drift has its
// class, and an operator's signature ends it. The PC keeps what was approved.
func changedHardware() Scene {
	return Scene{
		Name: "changed-hardware", Title: "other hardware after a power cycle is found and classed; approved, the PC is trusted again", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			refused, err := otherMAC(ctx, s)
			if err != nil {
				return err
			}
			quarantined, err := otherMachine(ctx, s)
			if err != nil {
				return err
			}
			if err := s.approve(ctx, "drift"); err != nil {
				return err
			}
			review, err := otherFirmware(ctx, s)
			if err != nil {
				return err
			}
			s.Note("another MAC: no offer (%s); serial number and disk: %s; approved; firmware: %s; approved", refused, quarantined, review)
			return nil
		},
	}
}

// otherMAC boots with a network card that the Pi does not know.
func otherMAC(ctx context.Context, s *Stage) (string, error) {
	s.PowerCut()
	s.PCMAC = "52:54:00:ba:dc:a1"
	defer func() { s.PCMAC = "" }()
	mark := s.Log.Mark()
	if err := s.PowerOn(ctx); err != nil {
		return "", err
	}
	defer s.PowerCut()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	e, err := s.Log.Wait(ctx, mark, lab.With("violation", "reason", "mac-spoof"))
	if err != nil {
		return "", fmt.Errorf("another MAC is not refused: %w; %s", err, s.Why(mark))
	}
	return e.Text("reason"), nil
}

// otherMachine boots with another serial number and a second disk.
func otherMachine(ctx context.Context, s *Stage) (string, error) {
	s.Hardware.SMBIOS, s.Hardware.Disk = []string{"type=1,serial=another"}, "EXTRA-1"
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	mark := s.Log.Mark()
	if err := s.PowerOn(ctx); err != nil {
		return "", err
	}
	if _, err := s.UntilTrusted(ctx, mark); !errors.Is(err, lab.ErrNotTrusted) {
		return "", fmt.Errorf("the boot with other hardware ended with %v", err)
	}
	for _, want := range []string{"hw-added dmi product_serial", "hw-added pci "} {
		if !s.found(mark, want) {
			return "", fmt.Errorf("no finding %q: %s", want, s.Why(mark))
		}
	}
	list, err := s.drift(ctx)
	if err != nil {
		return "", err
	}
	if !strings.Contains(list, "fatal dmi product_serial") || !strings.Contains(list, "fatal pci ") || strings.Contains(list, "review") {
		return "", fmt.Errorf("what waits for an operator: %s", list)
	}
	s.PowerCut()
	return list, nil
}

// otherFirmware boots the approved machine with another firmware version.
func otherFirmware(ctx context.Context, s *Stage) (string, error) {
	s.Hardware.SMBIOS = append(s.Hardware.SMBIOS, "type=0,vendor=lab,version=2.0,uefi=on")
	mark := s.Log.Mark()
	if _, err := s.Boot(ctx, BootLimit); err != nil {
		return "", fmt.Errorf("the approved hardware: %w", err)
	}
	list, err := s.drift(ctx)
	if err != nil {
		return "", err
	}
	if !s.found(mark, "hw-review dmi bios_version") || !strings.Contains(list, "review dmi bios_version") || strings.Contains(list, "fatal") {
		return "", fmt.Errorf("the drift of the firmware: %s; %s", list, s.Why(mark))
	}
	v, err := s.Verdict(ctx)
	if err != nil {
		return "", err
	}
	if !strings.Contains(strings.Join(v.Warnings, "\n"), "drift waits for an operator") {
		return "", fmt.Errorf("the verdict does not warn: %q", v.Warnings)
	}
	if err := s.approve(ctx, "drift"); err != nil {
		return "", err
	}
	if v, err = s.Verdict(ctx); err != nil {
		return "", err
	}
	if v.State != Trusted || strings.Contains(strings.Join(v.Warnings, "\n"), "drift waits") {
		return "", fmt.Errorf("after the approval: %v, %q", v.State, v.Warnings)
	}
	return list, nil
}

// found tells whether a finding since mark has a reason and a detail that begin so.
func (s *Stage) found(mark int, want string) bool {
	for _, e := range s.Log.Since(mark) {
		if e.Name == "finding" && strings.HasPrefix(e.Text("reason")+" "+e.Text("detail"), want) {
			return true
		}
	}
	return false
}

// drift is what waits for an operator, one line.
func (s *Stage) drift(ctx context.Context) (string, error) {
	// It ends with 1 because something waits; the output says what.
	out, err := s.Run(ctx, "portcullis", "fingerprint", "show", "--run-dir", s.RunDir(), "--json")
	var r struct {
		Waiting *struct {
			Changes []struct{ Kind, Class, Slot, Level string }
		}
	}
	if jerr := json.Unmarshal(out, &r); jerr != nil {
		return "", fmt.Errorf("fingerprint show: %w: %q: %w", jerr, out, err)
	}
	if r.Waiting == nil {
		return "", errors.New("no drift waits for an operator")
	}
	var list []string
	for _, c := range r.Waiting.Changes {
		list = append(list, c.Level+" "+c.Class+" "+c.Slot+" "+c.Kind)
	}
	return strings.Join(list, ", "), nil
}

// approve signs what waits, as an operator does.
func (s *Stage) approve(ctx context.Context, of string) error {
	mark := s.Log.Mark()
	if out, err := s.Run(ctx, "portcullis", "fingerprint", "approve", "--run-dir", s.RunDir(), "--key", s.OperatorKey(), "--json"); err != nil {
		return fmt.Errorf("fingerprint approve: %w: %s", err, out)
	}
	if _, err := s.first(mark, lab.With("fingerprint.approved", "of", of)); err != nil {
		return err
	}
	return nil
}
