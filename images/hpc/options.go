package hpc

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/manifest"
)

// Options of one build.
type Options struct {
	Profile string // manifest.ProfileLab or manifest.ProfileGeneric
	Recipe  string // a recipe file that extends ours; "" = ours alone

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
	CacheDir string // "" = DefaultCache()

	// Binaries are static linux/amd64 programs; empty paths are built from the module's source.
	Binaries Binaries
	Refresh  bool // ask the archive for newer packages instead of using the last answer
	Progress Progress
}

// Binaries are paths of the project's own programs for the PC.
type Binaries struct {
	Init  string // hpc-init, /init of the initrd
	Agent string // hpc-agent
	Lab   string // hpc-lab; looked at for the lab profile only
}

// DefaultValidity is how long an image is valid where nothing is said.
const DefaultValidity = 2 * 365 * 24 * time.Hour

// CacheEnv names the environment variable with the cache directory.
const CacheEnv = "PORTCULLIS_CACHE"

// DefaultCache returns $PORTCULLIS_CACHE, or build/cache in the module that the
// working directory is in, or portcullis in the user's cache directory.
func DefaultCache() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	if root, err := moduleRoot(); err == nil {
		return filepath.Join(root, "build", "cache"), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the build cache (set %s): %w", CacheEnv, err)
	}
	return filepath.Join(dir, "portcullis"), nil
}

// Reason classifies a refused build; it appears in messages and docs by this name.
type Reason string

// Reasons.
const (
	ReasonOptions     Reason = "image-options"      // an option is missing or out of range
	ReasonLabInReal   Reason = "lab-channel"        // a generic image would hold the lab's command channel
	ReasonUnsafeTree  Reason = "image-unsafe"       // the tree has a login, a password or the like
	ReasonMissing     Reason = "image-missing"      // the recipe names what no package has
	ReasonTooLarge    Reason = "image-too-large"    // an artefact is over its target
	ReasonNotStatic   Reason = "binary-not-static"  // a program of ours needs a loader
	ReasonCacheBroken Reason = "image-cache-broken" // a cached stage is not what it was
)

// Error is a refused build.
type Error struct {
	Reason Reason
	Msg    string
	Err    error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s (%s)", e.Msg, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func refuse(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Msg: fmt.Sprintf(format, args...)}
}

func (o *Options) check() error {
	if o.Profile != manifest.ProfileLab && o.Profile != manifest.ProfileGeneric {
		return refuse(ReasonOptions, "profile %q is neither %q nor %q", o.Profile, manifest.ProfileLab, manifest.ProfileGeneric)
	}
	if len(o.Signers) == 0 {
		return refuse(ReasonOptions, "a release key is needed to sign the image")
	}
	for _, s := range o.Signers {
		if _, ok := s.Public().(ed25519.PublicKey); !ok {
			return refuse(ReasonOptions, "a release key is not an Ed25519 key")
		}
	}
	if len(o.GatewayKey) != ed25519.PublicKeySize {
		return refuse(ReasonOptions, "the gateway's public key is needed: the agent speaks to nobody else")
	}
	if o.OutDir == "" {
		return refuse(ReasonOptions, "an output directory is needed")
	}
	if o.Threshold < 0 || o.Threshold > len(o.Signers)+len(o.TrustKeys) {
		return refuse(ReasonOptions, "threshold %d is not between 1 and the number of release keys", o.Threshold)
	}
	if o.Threshold == 0 {
		o.Threshold = len(o.Signers)
	}
	if o.Version == 0 {
		o.Version = 1
	}
	if !o.NotBefore.IsZero() && !o.NotAfter.IsZero() && !o.NotAfter.After(o.NotBefore) {
		return refuse(ReasonOptions, "not-after %s is not after not-before %s", o.NotAfter.Format(time.RFC3339), o.NotBefore.Format(time.RFC3339))
	}
	if o.CacheDir == "" {
		dir, err := DefaultCache()
		if err != nil {
			return err
		}
		o.CacheDir = dir
	}
	return nil
}

// moduleRoot finds the directory of the module's go.mod above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && isOurModule(b) {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("not inside a checkout of the portcullis module")
		}
		dir = up
	}
}
