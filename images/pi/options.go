package pi

import (
	"crypto/ed25519"

	"portcullis/images/card"
	"portcullis/images/debroot"
)

// Options of one build.
type Options struct {
	Model   string // card.ModelPi4, card.ModelPi5 or card.ModelQEMU
	Profile string // card.ProfileDev or card.ProfileRelease
	Recipe  string // a recipe file that extends ours; "" = ours alone

	Keys      *Keys
	TrustKeys []ed25519.PublicKey // further release keys, which sign elsewhere
	Threshold int                 // signatures that the Pi asks for of updates; 0 = 1

	Sequence uint64 // of the release, 1 to card.MaxSequence; 0 = 1
	NVIndex  uint32 // of the chip's rollback counter; 0 = DefaultNVIndex

	Root string // chip that first boot enrols, card.RootAuto and so on; "" = card.RootAuto

	// ZymbitDebs is a directory with the vendor's packages, which may not be
	// passed on: their unlocking tool goes into the initramfs. "" = none.
	ZymbitDebs string

	// Services are files that go into ServicesDir of the system: the Pi's services as
	// container images, and their approvals.
	Services []string

	OutDir   string
	CacheDir string // "" = debroot.DefaultCache()

	// Bin is a directory with static linux/arm64 programs; what is not in it is
	// built from the module's source, as is everything where it is "".
	Bin      string
	Refresh  bool // ask the archive for newer packages instead of using the last answer
	Progress debroot.Progress
}

// ServicesDir is where verifierd finds the services that came with the system.
const ServicesDir = "/usr/share/portcullis/services"

// DefaultNVIndex is the chip's rollback counter: in the range that the TCG leaves
// to owners (Registry of Reserved TPM 2.0 Handles, 0x01800000 to 0x01BFFFFF).
const DefaultNVIndex = 0x01800077

// Error is a refused build, with a reason of package debroot.
type Error = debroot.Error

var refuse = debroot.Refuse

func (o *Options) check() error {
	bad := func(format string, args ...any) error { return refuse(debroot.ReasonOptions, format, args...) }
	switch {
	case o.Model != card.ModelPi4 && o.Model != card.ModelPi5 && o.Model != card.ModelQEMU:
		return bad("model %q is not one of %s, %s and %s", o.Model, card.ModelPi4, card.ModelPi5, card.ModelQEMU)
	case o.Profile != card.ProfileDev && o.Profile != card.ProfileRelease:
		return bad("profile %q is neither %s nor %s", o.Profile, card.ProfileDev, card.ProfileRelease)
	case o.Keys == nil:
		return bad("the release keys are needed: 'portcullis image keygen --pi PREFIX' makes them")
	case o.OutDir == "":
		return bad("an output directory is needed")
	case o.Sequence > card.MaxSequence:
		return bad("sequence %d is more than %d", o.Sequence, uint64(card.MaxSequence))
	case o.Threshold < 0 || o.Threshold > 1+len(o.TrustKeys):
		return bad("threshold %d is not between 1 and the number of release keys", o.Threshold)
	case o.Root != "" && !card.RootKnown(o.Root):
		return bad("root %q is not one of %s, %s, %s and %s", o.Root, card.RootAuto, card.RootTPM2, card.RootZymbit, card.RootCombined)
	case (o.Root == card.RootZymbit || o.Root == card.RootCombined) && o.ZymbitDebs == "":
		return bad("root %s needs the vendor's packages for a Zymkey: no image could speak to one without", o.Root)
	case o.NVIndex != 0 && o.NVIndex>>24 != 0x01:
		return bad("%#x is not an NV index of a TPM", o.NVIndex)
	}
	if o.Sequence == 0 {
		o.Sequence = 1
	}
	if o.Threshold == 0 {
		o.Threshold = 1
	}
	if o.Root == "" {
		o.Root = card.RootAuto
	}
	if o.NVIndex == 0 {
		o.NVIndex = DefaultNVIndex
	}
	if o.CacheDir == "" {
		dir, err := debroot.DefaultCache()
		if err != nil {
			return err
		}
		o.CacheDir = dir
	}
	return nil
}
