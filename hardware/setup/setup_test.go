package setup

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/hardware/zymbit"
)

var day = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

func TestSoftHSMTokenIsMadeOnceAndFoundAgain(t *testing.T) {
	dir := t.TempDir()
	a, err := PrepareSoftHSM(t.Context(), dir, day, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatalf("%v (needs the package softhsm2)", err)
	}
	for _, c := range TestSoftHSM(t.Context(), a) {
		if !c.OK {
			t.Error(c)
		}
	}
	said := 0
	b, err := PrepareSoftHSM(t.Context(), dir, day, func(string) { said++ })
	if err != nil || *a != *b || said != 0 {
		t.Errorf("a second time: %+v, %v, %d steps", b, err, said)
	}
	tokens, err := os.ReadDir(filepath.Join(dir, softTokens))
	if err != nil || len(tokens) != 1 {
		t.Errorf("%d tokens, %v", len(tokens), err)
	}
	for _, f := range []string{softPIN, softSOPIN, softConf} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, softTokens)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, softTokens), 0o700); err != nil {
		t.Fatal(err)
	}
	if c := TestSoftHSM(t.Context(), a); c[0].OK {
		t.Error("a token that is gone passes the test")
	}
}

func TestStateRoundTripAndRefusals(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	s, err := Load(dir)
	if err != nil || s.TPM != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	s.TPM = &TPM{Done: day, Device: "/dev/tpmrm0", Handles: map[string]string{"ak": "0x81008002", "counter": "0x1800080"}}
	if err := s.Save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil || again.TPM == nil || again.TPM.Device != "/dev/tpmrm0" {
		t.Fatalf("%+v, %v", again, err)
	}
	if c := again.TPM.Config(tpm2.Config{SRK: 1, AK: 2}); c.SRK != 1 || c.AK != 0x81008002 || c.NVIndex != 0x01800080 {
		t.Errorf("%+v", c)
	}
	for _, b := range []string{"", "{}", `{"schema":"portcullis/root-setup/v2"}`, `{"schema":"portcullis/root-setup/v1","x":1}`} {
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := Load(dir); err == nil {
			t.Errorf("%q: %+v", b, s)
		}
	}
}

func TestTPMIsPreparedTwiceWithOneResult(t *testing.T) {
	chip := tpmtest.Start(t)
	c := tpm2.Config{AK: 0x81008002}
	a, err := PrepareTPM(t.Context(), chip.Path, c, day, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	if a.Handles["srk"] != "0x81000001" || a.Handles["ak"] != "0x81008002" || a.AK == "" {
		t.Errorf("%+v", a)
	}
	chip.Reboot(t)
	b, err := PrepareTPM(t.Context(), chip.Path, c, day, func(string) {})
	if err != nil || b.AK != a.AK || b.EK != a.EK {
		t.Errorf("%+v, %v", b, err)
	}
	for _, k := range TestTPM(t.Context(), chip.Path, c) {
		if !k.OK {
			t.Error(k)
		}
	}
	// The storage key's handle is never taken for another key, and a handle that holds
	// something else is told, not overwritten.
	if _, err := PrepareTPM(t.Context(), chip.Path, tpm2.Config{AK: tpm2.DefaultSRK}, day, func(string) {}); err == nil {
		t.Error("0x81000001 was taken for the attestation key")
	}
	_, err = PrepareTPM(t.Context(), chip.Path, tpm2.Config{SRK: 0x81008002, AK: 0x81008003}, day, func(string) {})
	if hardware.ReasonOf(err) != ReasonHandle {
		t.Errorf("a foreign handle: %v", err)
	}
	if c := TestTPM(t.Context(), filepath.Join(t.TempDir(), "none"), c); len(c) != 1 || c[0].OK {
		t.Errorf("%+v", c)
	}
}

// zymbitBench writes fake tools and the files of a Pi.
func zymbitBench(t *testing.T, unlock string) (ZymbitPaths, zymbit.ExecConfig) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, body string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const turn = `tr '\000-\377' '\200-\377\000-\177'`
	p := ZymbitPaths{Env: filepath.Join(dir, "zkenv.conf"),
		DebugGPIO: write("gpio", "gpiochip0: GPIOs 512-569, parent: platform/fe200000.gpio, pinctrl-bcm2711:\n")}
	return p, zymbit.ExecConfig{
		Lock:   write("lock", "#!/bin/sh\n"+turn+" < \"$1\"\n"),
		Unlock: write("unlock", "#!/bin/sh\ntest \"$ZK_GPIO_WAKE_PIN\" = 516 || exit 1\n"+unlock+turn+" < \"$1\"\n"),
		Random: write("random", "#!/bin/sh\nhead -c \"$1\" /dev/urandom\n"), Attempts: 1,
	}
}

func TestZymbitGetsTheWakePinOfThisKernel(t *testing.T) {
	p, c := zymbitBench(t, "")
	if err := os.WriteFile(p.Env, []byte("ZK_OTHER=1\nZK_GPIO_WAKE_PIN=4\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	z, err := PrepareZymbit(t.Context(), p, c, day, func(string) {})
	if err != nil || z.WakePin != 516 || !z.Identity.UnverifiedOnHardware {
		t.Fatalf("%+v, %v", z, err)
	}
	b, err := os.ReadFile(p.Env)
	if err != nil || string(b) != "ZK_OTHER=1\nZK_GPIO_WAKE_PIN=516\n" {
		t.Errorf("%q, %v", b, err)
	}
	said := 0
	if _, err := PrepareZymbit(t.Context(), p, c, day, func(string) { said++ }); err != nil || said != 1 {
		t.Errorf("a second time: %v, %d steps", err, said)
	}
	p, c = zymbitBench(t, "exit 1\n")
	if _, err := PrepareZymbit(t.Context(), p, c, day, func(string) {}); hardware.ReasonOf(err) != zymbit.ReasonRefused {
		t.Errorf("a module that is not bound: %v", err)
	}
	p.Env = filepath.Join(t.TempDir(), "gone", "zkenv.conf")
	if _, err := PrepareZymbit(t.Context(), p, c, day, func(string) {}); hardware.ReasonOf(err) != hardware.ReasonAbsent {
		t.Errorf("the vendor's directory was made: %v", err)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"schema":"portcullis/root-setup/v1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseState(b); err == nil && s.Schema != Schema {
			t.Error(s.Schema)
		}
	})
}
