package piinit

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/detect"
	"portcullis/hardware/escrow"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// Times of one boot.
type Times struct {
	Card     time.Duration // until the card must have appeared
	Recovery time.Duration // that a person has for the recovery key, wrong ones included
	Enrol    time.Duration // that a person has to agree to an enrolment without escrow
}

// DefaultTimes are those of a real Pi.
var DefaultTimes = Times{Card: 30 * time.Second, Recovery: 2 * time.Minute, Enrol: time.Minute}

// Boot is one boot up to the mounted system. Everything outside comes in by its fields.
type Boot struct {
	Info     *card.Info
	Cmdline  string // /proc/cmdline
	Firmware fs.FS  // /proc/device-tree; empty where there is none
	EFI      bool   // the kernel was started by UEFI
	Host     Host
	Console  Console
	Log      *boot.StageLog
	Allow    func(time.Duration) // feeds the watchdog for so long
	Random   io.Reader           // the kernel's
	Times    Times
	People   luks2.KDF // of the recovery keyslot

	stage    string
	verity   boot.Verity
	own      card.Release
	digest   *bootDigest // of the boot partition, being computed; nil: not needed
	card     Card
	conf     *card.Conf
	crypt    Disk
	header   *luks2.Header // of a volume that was enrolled before this boot
	decision card.Decision
	policy   *tpmpolicy.File
	platform tpmpolicy.Platform
	tpm      TPM              // nil: none
	noChip   error            // why tpm is nil
	module   hardware.Root    // Zymbit's; nil: none
	noModule error            // why module is nil
	names    [2]string        // of the TPM and of the module, as they call themselves
	chip     tpm2.Config      // under which it was opened
	keeper   hardware.Root    // who is to keep the key of a first boot; nil: nobody
	backend  hardware.Backend // the keeper's
	hand     card.Handover
}

// Result is what the running system needs.
type Result struct {
	Handover *card.Handover
	Space    Space
	Seed     *card.Seed // as the card offers it; nil: none, or not valid
	SeedText []byte     // its text, without padding
	// Enrolment is first boot's record as the card has it, or what the running system
	// made of it; nil where there is none.
	Enrolment []byte
	// Accept asks a person whether changed settings are theirs.
	Accept func(context.Context) bool
}

// errRestart: this release is given up; the machine restarts into the other slot.
var errRestart = errors.New("restart")

// stepLimit is how long one step may take before the watchdog bites.
const stepLimit = time.Minute

func (b *Boot) begin(stage string) {
	b.stage = stage
	b.Allow(stepLimit)
}

// Stage is the step under way, for the report of a failure.
func (b *Boot) Stage() string { return b.stage }

// Run boots up to the mounted and capped system.
func (b *Boot) Run(ctx context.Context) (*Result, error) {
	b.hand = card.Handover{Schema: card.HandoverSchema, Model: b.Info.Model, Profile: b.Info.Profile, Sequence: b.Info.Sequence,
		ReleaseKeys: b.Info.ReleaseKeys, Threshold: b.Info.Threshold, PolicyKey: b.Info.PolicyKey, NVIndex: b.Info.NVIndex, LabChannel: b.Info.LabChannel,
		Root: b.Info.Root}
	defer b.dropDigest()
	for _, step := range []func(context.Context) error{b.openCard, b.findPosture, b.measure} {
		if err := step(ctx); err != nil {
			return nil, reasoned(err)
		}
	}
	defer b.closeChips()
	space, err := b.openVolume(ctx)
	if err != nil {
		return nil, reasoned(err)
	}
	if err := b.mountData(ctx, space); err != nil {
		return nil, reasoned(err)
	}
	seed, text := b.seed()
	record, err := b.conf.Enrol()
	if err != nil {
		return nil, reasoned(err)
	}
	return &Result{Handover: &b.hand, Space: space, Seed: seed, SeedText: text, Enrolment: record, Accept: b.accept}, nil
}

// openCard finds the card, and decides from the slot state what this boot is. The
// attempt of a trial is on the card before anything else is tried.
func (b *Boot) openCard(ctx context.Context) error {
	b.begin(StageCard)
	own, err := card.Cmdline(b.Cmdline)
	if err != nil {
		return boot.Failf(ReasonModel, "%w", err)
	}
	if b.verity, err = boot.ParseVerity(own); err != nil {
		return err
	}
	root, err := rootOf(b.verity)
	if err != nil {
		return err
	}
	b.own = card.Release{Sequence: b.Info.Sequence, Root: root}
	b.hand.RootHash = b.verity.RootHash

	wait, cancel := context.WithTimeout(ctx, b.Times.Card)
	defer cancel()
	if b.card, err = b.Host.Card(wait); err != nil {
		return err
	}
	part, err := b.card.Partition(card.PartConf)
	if err != nil {
		return err
	}
	if b.conf, err = card.OpenConf(part, part.Size()); err != nil {
		return err
	}
	if b.crypt, err = b.card.Partition(card.PartCrypt); err != nil {
		return err
	}
	state, err := b.conf.State()
	if err != nil {
		return err
	}
	next, d, err := state.Boot(b.own)
	if err != nil {
		return err
	}
	b.decision = d
	// Neither UEFI's registers nor the bootloader's own word need it.
	if _, said := detect.BootImage(b.Firmware); !said && !b.EFI && !d.Back {
		b.startDigest(ctx)
	}
	// Until here nothing was written: another card may still appear.
	if err := b.Host.Settled(wait); err != nil {
		return err
	}
	if err := b.repairTable(ctx); err != nil {
		return err
	}
	if err := b.keep(next); err != nil {
		return err
	}
	b.Log.Stage(b.stage, "model", b.Info.Model, "release", b.Info.Sequence, "slot", b.decision.Slot)
	return nil
}

// repairTable makes both copies of the partition table whole again.
func (b *Boot) repairTable(ctx context.Context) error {
	t, health, err := b.card.Table()
	if err != nil {
		return err
	}
	// A freshly flashed card has the table of its image, which is smaller: first boot
	// grows it, nothing is broken.
	smaller := t.Sectors != uint64(b.card.Size()/card.SectorSize)
	if health.PrimaryFault == "" && (health.BackupFault == "" || smaller) {
		return nil
	}
	b.Log.Note("partition-table", "repaired", health)
	return b.card.WriteTable(ctx, t)
}

// keep puts on the card what this boot is, with the slot state next.
func (b *Boot) keep(next card.State) error {
	d := b.decision
	if d.Back {
		b.Log.Note("trial", "dropped", d.Reason, "release", b.own.Sequence)
		if err := b.conf.Drop(d.Reason); err != nil {
			return err
		}
		return &boot.Failure{Reason: ReasonTrial, Err: errRestart}
	}
	if err := card.CheckFirmware(d.Slot, b.Firmware); err != nil {
		return err
	}
	if d.Write {
		if err := b.conf.SetState(next); err != nil {
			return err
		}
	}
	b.hand.Slot, b.hand.Trial, b.hand.Attempt, b.hand.Dropped = d.Slot, d.Trial, d.Attempt, d.Reason
	if d.Reason != "" {
		b.Log.Note("trial", "dropped", d.Reason)
	}
	return nil
}

// bootVolume opens the boot partition that runs.
func (b *Boot) bootVolume() (*fat.FS, error) {
	part, err := b.card.Partition(b.decision.Slot.BootPartition())
	if err != nil {
		return nil, err
	}
	v, err := fat.Open(part, part.Size())
	if err != nil {
		return nil, boot.Failf(ReasonBootFiles, "%w", err)
	}
	return v, nil
}

// reasoned gives the errors of other packages the reason that they carry.
func reasoned(err error) error {
	var (
		f *boot.Failure
		c *card.Error
		h *hardware.Error
		l *luks2.Error
		g *gpt.Error
		s *fat.Error
		e *escrow.Error
	)
	switch {
	case err == nil, errors.As(err, &f):
		return err
	case errors.As(err, &c):
		return &boot.Failure{Reason: boot.Reason(c.Reason), Err: errors.New(c.Detail)}
	case errors.As(err, &h):
		return &boot.Failure{Reason: boot.Reason(h.Reason), Err: h.Err}
	case errors.As(err, &l):
		return &boot.Failure{Reason: boot.Reason(l.Reason), Err: l.Err}
	case errors.As(err, &g):
		return &boot.Failure{Reason: boot.Reason(g.Reason), Err: errors.New(g.Detail)}
	case errors.As(err, &s):
		return &boot.Failure{Reason: boot.Reason(s.Reason), Err: errors.New(s.Detail)}
	case errors.As(err, &e):
		return &boot.Failure{Reason: boot.Reason(e.Reason), Err: e.Err}
	}
	return err
}
