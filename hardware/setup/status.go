package setup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"portcullis/hardware"
	"portcullis/images/card"
	"portcullis/images/luks2"
)

// Status is what "portcullis root status" shows.
type Status struct {
	Posture       hardware.Posture `json:"posture"` // in this boot
	PostureDetail string           `json:"posture_detail,omitempty"`
	Platform      string           `json:"platform,omitempty"`
	Backend       string           `json:"backend,omitempty"`
	Demand        string           `json:"demand,omitempty"` // chip that the image enrols, see card.Info
	Chip          string           `json:"chip,omitempty"`
	UnlockedBy    string           `json:"unlocked_by,omitempty"`
	Volume        *Volume          `json:"volume"`
	Setup         *State           `json:"setup"`
	Warnings      []string         `json:"warnings"`
	Errors        []string         `json:"errors,omitempty"`
}

// Volume is the public part of the encrypted partition's header.
type Volume struct {
	UUID      string  `json:"uuid"`
	Bindings  []Bound `json:"bindings"`
	Recovery  int     `json:"recovery_slots"`
	Healthy   bool    `json:"healthy"` // both copies of the header are whole
	Committed bool    `json:"committed"`
}

// Bound is one keyslot of a chip.
type Bound struct {
	Slot     string           `json:"slot"`
	Backend  hardware.Backend `json:"backend"`
	Posture  hardware.Posture `json:"posture"` // at enrolment
	Platform string           `json:"platform"`
	State    string           `json:"state"`
	Enrolled string           `json:"enrolled"`
}

// Paths of what Gather reads.
type Paths struct {
	Handover string // card.HandoverPath
	Device   string // the encrypted partition; empty: not looked at
	Dir      string // of State
}

// Gather reads the handover of pi-init, the volume's header and the state. Nothing of it
// is secret, and nothing is asked of a chip. A part that cannot be read is in Errors.
func Gather(p Paths) *Status {
	s := &Status{Posture: hardware.PostureNone, Warnings: []string{}}
	fail := func(err error) { s.Errors = append(s.Errors, err.Error()) }
	if h, err := readHandover(p.Handover); err != nil {
		fail(err)
	} else {
		s.handover(h)
	}
	if p.Device != "" {
		v, err := readVolume(p.Device)
		if err != nil {
			fail(fmt.Errorf("%s: %w", p.Device, err))
		}
		s.Volume = v
	}
	st, err := Load(p.Dir)
	if err != nil {
		fail(err)
	}
	s.Setup = st
	s.warn()
	return s
}

func (s *Status) handover(h *card.Handover) {
	p, err := hardware.ParsePosture(h.Posture)
	if err != nil {
		s.Errors = append(s.Errors, err.Error())
		p = hardware.PostureNone
	}
	s.Posture, s.PostureDetail, s.Platform = p, h.PostureDetail, h.Platform
	s.Backend, s.Chip, s.UnlockedBy = h.Backend, h.Chip, h.UnlockedBy
	s.Demand = h.Info().Demand()
	if h.Recovered {
		s.Warnings = append(s.Warnings, "the volume was opened with the recovery key ("+h.ChipProblem+"): run portcullis root rearm")
	}
	if h.Profile != card.ProfileRelease {
		s.Warnings = append(s.Warnings, "this is a "+h.Profile+" image")
	}
}

func (s *Status) warn() {
	say := func(format string, args ...any) { s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...)) }
	if s.Posture == hardware.PostureCardTheft {
		say("posture card-theft: who can write to the card's boot partition, or takes Pi and card together, can open the volume")
	}
	if s.Setup != nil && s.Setup.SoftHSM != nil {
		say("a SoftHSM token is set up: it is software on this disk and protects nothing")
	}
	if s.Volume == nil {
		return
	}
	committed := 0
	for _, b := range s.Volume.Bindings {
		if b.State == hardware.StateCommitted {
			committed++
		}
		if b.Posture != s.Posture && s.Posture != "" && s.UnlockedBy != "" {
			say("keyslot %s was enrolled in posture %s, this boot has %s", b.Slot, b.Posture, s.Posture)
		}
		if b.Backend == hardware.BackendFake {
			say("keyslot %s belongs to a fake chip", b.Slot)
		}
		if b.Backend == hardware.BackendZymbit {
			say("keyslot %s: a Zymbit module alone gives the key to any software on this Pi, also to an older release, and again after the boot", b.Slot)
		}
		if d := s.Demand; d != "" && d != card.RootAuto && string(b.Backend) != d && b.Backend != hardware.BackendCombined {
			say("keyslot %s is bound to %s, the image demands %s: it opens with the recovery key only", b.Slot, b.Backend, d)
		}
		if b.Backend == hardware.BackendZymbit || b.Backend == hardware.BackendCombined {
			say("keyslot %s: the Zymbit backend was never run against a module by its makers", b.Slot)
		}
	}
	switch {
	case committed == 0:
		say("no chip opens this volume")
	case committed > 1:
		say("%d chips are bound: a rearm was interrupted; run portcullis root rearm again", committed)
	}
	if s.Volume.Recovery == 0 {
		say("there is no recovery key: when the chip dies the data is gone")
	}
	if !s.Volume.Healthy {
		say("one copy of the header is damaged: pi-init repairs it at the next boot")
	}
}

func readHandover(path string) (*card.Handover, error) {
	b, err := readCapped(path, card.MaxHandover)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing: this machine was not started by pi-init", path)
	}
	if err != nil {
		return nil, err
	}
	return card.ParseHandover(b)
}

func readVolume(device string) (*Volume, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	h, health, err := luks2.Read(f, size)
	if err != nil {
		return nil, err
	}
	v := &Volume{UUID: h.UUID(), Healthy: health.Good(), Bindings: []Bound{}}
	for _, t := range h.Tokens() {
		switch t.Type {
		case luks2.RecoveryTokenType:
			v.Recovery += len(t.Slots)
		case hardware.TokenType:
			p, err := hardware.ParseToken(t.JSON)
			if err != nil {
				return v, fmt.Errorf("token %d: %w", t.ID, err)
			}
			v.Bindings = append(v.Bindings, Bound{strings.Join(p.Keyslots, ","), p.Backend, p.Posture, p.Platform, p.State, p.Enrolled})
			v.Committed = v.Committed || p.State == hardware.StateCommitted
		}
	}
	return v, nil
}

func readCapped(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return b, nil
}
