package pi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"portcullis/images/card"
	"portcullis/images/debroot"
	"portcullis/images/manifest"
)

// What cannot be built is refused before anything is fetched or compiled.
func TestOptionsAreChecked(t *testing.T) {
	keys := newKeys(t)
	for name, change := range map[string]func(*Options){
		"model":     func(o *Options) { o.Model = "pi3" },
		"profile":   func(o *Options) { o.Profile = "lab" },
		"no keys":   func(o *Options) { o.Keys = nil },
		"no output": func(o *Options) { o.OutDir = "" },
		"sequence":  func(o *Options) { o.Sequence = card.MaxSequence + 1 },
		"threshold": func(o *Options) { o.Threshold = 2 },
		"NV index":  func(o *Options) { o.NVIndex = 0x81000001 },
		"root":      func(o *Options) { o.Root = "fake" },
		"no tools":  func(o *Options) { o.Root = card.RootCombined },
	} {
		o := Options{Model: card.ModelQEMU, Profile: card.ProfileDev, Keys: keys, OutDir: t.TempDir()}
		change(&o)
		_, err := Build(t.Context(), o)
		t.Run(name, func(t *testing.T) { wantReason(t, err, debroot.ReasonOptions) })
	}
}

func TestKeysAreKeptPrivateAndNeverOverwritten(t *testing.T) {
	prefix := filepath.Join(t.TempDir(), "release")
	k, err := GenerateKeys(prefix)
	must(t, err)
	again, err := LoadKeys(prefix)
	if err != nil || !again.Policy.Equal(k.Policy) || !again.Boot.Equal(k.Boot) || !again.Release.Equal(k.Release) {
		t.Fatalf("keys are not read back: %v", err)
	}
	if _, err := GenerateKeys(prefix); !errors.Is(err, os.ErrExist) {
		t.Errorf("keys were made anew: %v", err)
	}
	for _, s := range []string{"", PolicySuffix, BootSuffix} {
		st, err := os.Stat(prefix + s)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", s, st, err)
		}
		must(t, os.Chmod(prefix+s, 0o640))
		if _, err := LoadKeys(prefix); err == nil {
			t.Errorf("a key %q that the group can read was taken", s)
		}
		must(t, os.Chmod(prefix+s, 0o600))
	}
	wrong, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	must(t, os.Remove(prefix+PolicySuffix))
	must(t, os.Remove(prefix+PolicySuffix+manifest.PublicSuffix))
	must(t, writePair(prefix+PolicySuffix, wrong, &wrong.PublicKey))
	if _, err := LoadKeys(prefix); err == nil {
		t.Error("a policy key on another curve was taken")
	}
}
