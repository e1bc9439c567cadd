package hpc

import (
	"context"
	"errors"
	"testing"
	"time"

	"portcullis/images/debroot"
	"portcullis/images/manifest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Fatalf("got %v, want reason %s", err, want)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := func() Options {
		key := testKey(t, 1)
		return Options{Profile: manifest.ProfileLab, Signers: signers(key), GatewayKey: publicKey(testKey(t, 2)), OutDir: "x", CacheDir: "y"}
	}
	o := good()
	must(t, o.check())
	if o.Version != 1 || o.Threshold != 1 {
		t.Errorf("defaults: %+v", o)
	}
	for name, change := range map[string]func(*Options){
		"profile":    func(o *Options) { o.Profile = "mine" },
		"no key":     func(o *Options) { o.Signers = nil },
		"no gateway": func(o *Options) { o.GatewayKey = nil },
		"no output":  func(o *Options) { o.OutDir = "" },
		"threshold":  func(o *Options) { o.Threshold = 2 },
		"dates":      func(o *Options) { o.NotBefore = time.Unix(100, 0); o.NotAfter = time.Unix(100, 0) },
	} {
		o := good()
		change(&o)
		_, err := Build(context.Background(), o)
		t.Run(name, func(t *testing.T) { wantReason(t, err, debroot.ReasonOptions) })
	}
}
