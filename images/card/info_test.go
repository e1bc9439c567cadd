package card

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
)

func exampleInfo(t testing.TB) *Info {
	t.Helper()
	release, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Info{Schema: InfoSchema, Model: ModelPi4, Profile: ProfileRelease, Sequence: 7, ReleaseKeys: [][]byte{release},
		Threshold: 1, PolicyKey: policyKey(t, elliptic.P256()), NVIndex: 0x01800077}
}

func policyKey(t testing.TB, c elliptic.Curve) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestInfoRoundTrip(t *testing.T) {
	b, err := exampleInfo(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	i, err := ParseInfo(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := i.Encode()
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("%v\n%s\n%s", err, b, again)
	}
}

func TestInfoRefusals(t *testing.T) {
	for name, change := range map[string]func(*Info){
		"schema":                 func(i *Info) { i.Schema = "portcullis/pi-info/v2" },
		"model":                  func(i *Info) { i.Model = "pi3" },
		"profile":                func(i *Info) { i.Profile = "" },
		"root":                   func(i *Info) { i.Root = "fake" },
		"no sequence":            func(i *Info) { i.Sequence = 0 },
		"sequence too large":     func(i *Info) { i.Sequence = 1<<31 + 1 },
		"no release key":         func(i *Info) { i.ReleaseKeys = nil },
		"short release key":      func(i *Info) { i.ReleaseKeys[0] = i.ReleaseKeys[0][:31] },
		"no threshold":           func(i *Info) { i.Threshold = 0 },
		"threshold over keys":    func(i *Info) { i.Threshold = 2 },
		"no policy key":          func(i *Info) { i.PolicyKey = nil },
		"policy key, wrong kind": func(i *Info) { i.PolicyKey = policyKey(t, elliptic.P384()) },
		"handle is no NV index":  func(i *Info) { i.NVIndex = 0x81000001 },
		"lab channel in release": func(i *Info) { i.Model, i.LabChannel = ModelQEMU, true },
		"lab channel on a Pi":    func(i *Info) { i.Profile, i.LabChannel = ProfileDev, true },
	} {
		i := exampleInfo(t)
		change(i)
		if b, err := i.Encode(); err == nil {
			t.Errorf("%s: encoded as %s", name, b)
		}
	}
	good, err := exampleInfo(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty":       "",
		"unknown key": strings.Replace(string(good), `"model"`, `"more": 1, "model"`, 1),
		"more behind": string(good) + "{}",
		"too large":   string(good) + strings.Repeat(" ", MaxInfo),
	} {
		if _, err := ParseInfo([]byte(b)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzInfo(f *testing.F) {
	good, err := exampleInfo(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := ParseInfo(b)
		if err != nil {
			return
		}
		if _, err := i.Encode(); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
