package hpc

import (
	"crypto"
	"crypto/ed25519"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/manifest"
	"portcullis/images/recipe"
)

// Options of one build.
type Options struct {
	Profile string // manifest.ProfileLab or manifest.ProfileGeneric
	Recipe  string // a recipe file that extends ours; "" = ours alone
	Kernel  string // KernelDebian, KernelHardened, or "" = what the recipe says

	// Signers sign the manifest (Ed25519). Their public keys, with TrustKeys,
	// are the release keys that the initrd trusts.
	Signers    []crypto.Signer
	TrustKeys  []ed25519.PublicKey
	Threshold  int               // signatures that hpc-init asks for; 0 = one for each signer
	GatewayKey ed25519.PublicKey // identity of the Pi that the agent will talk to

	Version   uint64    // monotonic; 0 = 1
	NotBefore time.Time // zero = the time of the newest package in the image
	NotAfter  time.Time // zero = NotBefore and DefaultValidity

	OutDir   string // gets hpc.efi, vmlinuz, initrd, root.img, manifest.dsse, trust.json
	CacheDir string // "" = debroot.DefaultCache()

	// Binaries are static linux/amd64 programs; empty paths are built from the module's source.
	Binaries Binaries
	Refresh  bool // ask the archive for newer packages instead of using the last answer
	Progress Progress
}

// Kernels of an image: the one of Debian's package, or the one that images/kernel
// builds of the same version's source.
const (
	KernelDebian   = "debian"
	KernelHardened = recipe.BuildHardened
)

// Binaries are paths of the project's own programs for the PC.
type Binaries struct {
	Init  string // hpc-init, /init of the initrd
	Agent string // hpc-agent
	Lab   string // hpc-lab; looked at for the lab profile only
}

// DefaultValidity is how long an image is valid where nothing is said.
const DefaultValidity = 2 * 365 * 24 * time.Hour

// CacheEnv names the environment variable with the cache directory.
const CacheEnv = debroot.CacheEnv

// Progress is told what the build does.
type Progress = debroot.Progress

// NewReporter returns progress for people on w.
var NewReporter = debroot.NewReporter

// Reason classifies a refused build; it appears in messages and docs by this name.
type Reason = debroot.Reason

// Error is a refused build.
type Error = debroot.Error

var refuse = debroot.Refuse

func (o *Options) check() error {
	if o.Profile != manifest.ProfileLab && o.Profile != manifest.ProfileGeneric {
		return refuse(debroot.ReasonOptions, "profile %q is neither %q nor %q", o.Profile, manifest.ProfileLab, manifest.ProfileGeneric)
	}
	if o.Kernel != "" && o.Kernel != KernelDebian && o.Kernel != KernelHardened {
		return refuse(debroot.ReasonOptions, "kernel %q is neither %q nor %q", o.Kernel, KernelDebian, KernelHardened)
	}
	if len(o.Signers) == 0 {
		return refuse(debroot.ReasonOptions, "a release key is needed to sign the image")
	}
	for _, s := range o.Signers {
		if _, ok := s.Public().(ed25519.PublicKey); !ok {
			return refuse(debroot.ReasonOptions, "a release key is not an Ed25519 key")
		}
	}
	if len(o.GatewayKey) != ed25519.PublicKeySize {
		return refuse(debroot.ReasonOptions, "the gateway's public key is needed: the agent speaks to nobody else")
	}
	if o.OutDir == "" {
		return refuse(debroot.ReasonOptions, "an output directory is needed")
	}
	if o.Threshold < 0 || o.Threshold > len(o.Signers)+len(o.TrustKeys) {
		return refuse(debroot.ReasonOptions, "threshold %d is not between 1 and the number of release keys", o.Threshold)
	}
	if o.Threshold == 0 {
		o.Threshold = len(o.Signers)
	}
	if o.Version == 0 {
		o.Version = 1
	}
	if !o.NotBefore.IsZero() && !o.NotAfter.IsZero() && !o.NotAfter.After(o.NotBefore) {
		return refuse(debroot.ReasonOptions, "not-after %s is not after not-before %s", o.NotAfter.Format(time.RFC3339), o.NotBefore.Format(time.RFC3339))
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
