package piinit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"portcullis/hardware"
	"portcullis/hardware/combined"
	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// probeSize is how many random bytes the Zymbit module is asked for to find out
// whether it answers; the vendor's tools are in the image also where no module is.
const probeSize = 16

// moduleLimit is how long a step may take that calls the vendor's tools several
// times, each with its attempts.
const moduleLimit = 5 * stepLimit

// zymbitLimits explains in one sentence what a Zymbit module alone does not give.
const zymbitLimits = "the Zymbit module keeps the key; it measures nothing, counts no releases and is not closed after the boot"

// there is the backend that the chips of this Pi make up, "" for none. The Zymbit
// module counts where its tools are: it was not asked for anything.
func (b *Boot) there() hardware.Backend {
	switch {
	case b.tpm != nil && b.module != nil:
		return hardware.BackendCombined
	case b.tpm != nil:
		return hardware.BackendTPM2
	case b.module != nil:
		return hardware.BackendZymbit
	}
	return ""
}

// root returns the chip or chips of a backend, or says which is missing.
func (b *Boot) root(backend hardware.Backend) (hardware.Root, error) {
	switch backend {
	case hardware.BackendTPM2:
		if b.tpm == nil {
			return nil, b.noTPM()
		}
		return b.tpm, nil
	case hardware.BackendZymbit:
		if b.module == nil {
			return nil, b.noZymbit()
		}
		return b.module, nil
	case hardware.BackendCombined:
		switch {
		case b.tpm == nil && boot.ReasonOf(reasoned(b.noTPM())) == ReasonNotReset:
			return nil, b.noTPM() // no fault of the card, and no sign of another Pi
		case b.tpm == nil:
			return nil, &hardware.Error{Reason: combined.ReasonTPMHalf, Err: b.noTPM()}
		case b.module == nil:
			return nil, &hardware.Error{Reason: combined.ReasonZymbitHalf, Err: b.noZymbit()}
		}
		return combined.New(b.tpm, b.module), nil
	}
	return nil, boot.Failf(ReasonNoChip, "the key is kept by %q, which this image does not know", backend)
}

func (b *Boot) noTPM() error {
	if b.noChip != nil {
		return b.noChip
	}
	return &hardware.Error{Reason: hardware.ReasonAbsent, Err: errors.New("no TPM answers")}
}

func (b *Boot) noZymbit() error {
	if b.noModule != nil {
		return b.noModule
	}
	return &hardware.Error{Reason: hardware.ReasonAbsent, Err: errors.New("no Zymbit module answers")}
}

// askModule opens the Zymbit module where this image has the vendor's tools.
func (b *Boot) askModule(ctx context.Context) {
	state, err := b.conf.ZymbitState()
	if err != nil {
		b.Log.Note("zymbit", "problem", err) // what the running system kept is put in its place after this boot
	}
	if b.module, b.noModule = b.Host.Zymbit(ctx, state); b.noModule != nil {
		b.module = nil
		if hardware.ReasonOf(b.noModule) != hardware.ReasonAbsent {
			b.Log.Note("zymbit", "problem", b.noModule)
		}
	}
}

// nameChips says which chips there are.
func (b *Boot) nameChips(ctx context.Context) {
	firmware := ""
	if b.tpm != nil {
		id, err := b.tpm.Identify(ctx)
		if err != nil {
			b.dropTPM(err)
		} else {
			b.names[0], firmware = strings.TrimSpace(id.Manufacturer+" "+id.Model), id.Firmware
		}
	}
	if b.module != nil {
		id, err := b.module.Identify(ctx)
		if err != nil {
			b.dropModule(err)
		} else {
			b.names[1] = strings.TrimSpace(id.Manufacturer + " " + id.Model)
		}
	}
	backend := b.there()
	b.use(backend)
	if backend != "" {
		b.Log.Stage(b.stage, "backend", backend, "model", b.hand.Chip, "firmware", firmware)
	}
}

// use puts the backend and its chips into the handover.
func (b *Boot) use(backend hardware.Backend) {
	b.hand.Backend = string(backend)
	switch backend {
	case hardware.BackendTPM2:
		b.hand.Chip = b.names[0]
	case hardware.BackendZymbit:
		b.hand.Chip = b.names[1]
	case hardware.BackendCombined:
		b.hand.Chip = b.names[0] + " + " + b.names[1]
	default:
		b.hand.Chip = ""
	}
}

// choose decides at a first boot which chips are to keep the key. What the image
// demands is never weakened; where it leaves the choice, every chip that answers is
// taken. The module is asked for random bytes first: its tools alone prove nothing.
func (b *Boot) choose(ctx context.Context) error {
	demand := hardware.Backend(b.Info.Demand())
	if b.module != nil && demand != hardware.BackendTPM2 {
		b.Allow(moduleLimit)
		got, err := b.module.Random(ctx, probeSize)
		clear(got)
		if err != nil {
			b.dropModule(err)
		}
	}
	if demand == card.RootAuto {
		// A TPM that is there and does not work is no reason to do without it.
		if demand = b.there(); demand == "" || b.tpm == nil && hardware.ReasonOf(b.noTPM()) != hardware.ReasonAbsent {
			return b.noChipFailure()
		}
	}
	root, err := b.root(demand)
	switch {
	case err != nil && hardware.ReasonOf(err) == hardware.ReasonAbsent:
		return boot.Failf(ReasonNoChip, "this image enrols %s only: %w", demand, err)
	case err != nil:
		return reasoned(err)
	}
	b.enrolWith(demand, root)
	return nil
}

// enrolWith fixes who keeps the key that this boot makes.
func (b *Boot) enrolWith(backend hardware.Backend, root hardware.Root) {
	b.keeper, b.backend = root, backend
	b.use(backend)
	b.sayLimits(backend)
}

// sayLimits adds to the posture what the backend in use does not do.
func (b *Boot) sayLimits(backend hardware.Backend) {
	if backend == hardware.BackendZymbit {
		b.hand.PostureDetail += "; " + zymbitLimits
	}
}

// keeperOf returns the chips that a token names. A token that asks for less than the
// image demands is refused: whoever can write to the header, or to the card in
// another Pi, must not choose the weaker chip.
func (b *Boot) keeperOf(t *hardware.Token) (hardware.Root, error) {
	demand := hardware.Backend(b.Info.Demand())
	if demand != card.RootAuto && t.Backend != demand && t.Backend != hardware.BackendCombined {
		return nil, boot.Failf(ReasonDowngrade, "the volume's key is kept by %s; this image demands %s", t.Backend, demand)
	}
	root, err := b.root(t.Backend)
	if err != nil {
		return nil, err
	}
	b.use(t.Backend)
	return root, nil
}

// opened is how a volume was opened whose token names this backend.
var opened = map[hardware.Backend]string{
	hardware.BackendTPM2:     card.UnlockedByChip,
	hardware.BackendZymbit:   card.UnlockedByZymbit,
	hardware.BackendCombined: card.UnlockedByCombined,
}

// moduleWorked says that the Zymbit module has given its secret in this boot.
func (b *Boot) moduleWorked() bool {
	switch b.hand.UnlockedBy {
	case card.UnlockedByZymbit, card.UnlockedByCombined:
		return true
	case card.UnlockedByEnrol:
		return b.hand.Backend != card.RootTPM2
	}
	return false
}

// usesTPM says that the TPM counts the releases of this volume.
func usesTPM(b hardware.Backend) bool {
	return b == hardware.BackendTPM2 || b == hardware.BackendCombined
}

// dropTPM goes on without a TPM that does not work: the other chip, or a person
// with the recovery key, may still open the volume.
func (b *Boot) dropTPM(err error) {
	b.Log.Note("chip", "stage", b.stage, "problem", err)
	b.tpm.Close()
	b.tpm, b.noChip = nil, err
	b.withoutChip(err)
}

// dropModule is the same for the Zymbit module.
func (b *Boot) dropModule(err error) {
	b.Log.Note("zymbit", "stage", b.stage, "problem", err)
	b.module.Close()
	b.module, b.noModule = nil, err
	b.withoutChip(err)
}

func (b *Boot) withoutChip(err error) {
	b.use(b.there())
	if b.hand.Backend == "" {
		b.hand.Posture, b.hand.PostureDetail = string(hardware.PostureNone), "the chip does not work: "+err.Error()
	}
}

// closeChips lets go of the chips; what they keep is closed by capChip.
func (b *Boot) closeChips() {
	if b.tpm != nil {
		b.tpm.Close()
	}
	if b.module != nil {
		b.module.Close()
	}
	b.tpm, b.module, b.keeper, b.backend = nil, nil, nil, ""
}

// noChipFailure is the end of a first boot without any chip.
func (b *Boot) noChipFailure() error {
	err := b.noTPM()
	if b.noModule != nil && hardware.ReasonOf(b.noModule) != hardware.ReasonAbsent {
		err = fmt.Errorf("%w; %w", err, b.noModule)
	}
	if hardware.ReasonOf(err) == hardware.ReasonAbsent {
		return boot.Failf(ReasonNoChip, "no chip keeps the key, so nothing is enrolled: %w", err)
	}
	return reasoned(err)
}
