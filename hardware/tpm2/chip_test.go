package tpm2

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"

	"github.com/google/go-tpm/tpm2"
)

func TestIdentityAndRandom(t *testing.T) {
	w := newWorld(t)
	c := open(t, w.chip.Path, Config{})
	id, err := c.Identify(t.Context())
	if err != nil || id.Backend != hardware.BackendTPM2 || id.Manufacturer == "" || id.Firmware == "" {
		t.Errorf("%+v, %v", id, err)
	}
	a, err := c.Random(t.Context(), 512)
	if err != nil || len(a) != 512 {
		t.Fatalf("%d bytes, %v", len(a), err)
	}
	if bytes.Equal(a[:32], a[32:64]) {
		t.Error("the same bytes again")
	}
	for _, n := range []int{0, 513} {
		if _, err := c.Random(t.Context(), n); err == nil {
			t.Errorf("%d bytes", n)
		}
	}
	_, err = Open(w.chip.Path+"-none", Config{})
	wantReason(t, "no chip", err, hardware.ReasonAbsent)
}

func TestConfigRefusals(t *testing.T) {
	for name, cfg := range map[string]Config{
		"AK at the storage key's handle":        {AK: DefaultSRK},
		"AK at systemd's handle, SRK elsewhere": {AK: DefaultSRK, SRK: 0x81000002},
		"AK in the platform's range":            {AK: 0x81800001},
		"SRK is no persistent handle":           {SRK: 0x80000001},
		"counter is no NV index":                {NVIndex: 0x81000005},
		"both counters at one index":            {NVIndex: 0x01800077, Revocation: 0x01800077},
		"timeout in the past":                   {Timeout: -1},
	} {
		if _, err := New(silent{make(chan struct{})}, cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Every active bank gets its own hash of the same bytes: a policy over a bank that
// is left out would be satisfied by anybody.
func TestExtendFillsEveryActiveBank(t *testing.T) {
	w := newWorld(t)
	c := open(t, w.chip.Path, Config{})
	banks, err := c.Banks(t.Context())
	if err != nil || len(banks) < 3 {
		t.Fatalf("banks %v, %v: this test needs several", banks, err)
	}
	data := []byte("measured")
	if err := c.Extend(t.Context(), 8, data); err != nil {
		t.Fatal(err)
	}
	mac := func(h crypto.Hash, m []byte) ([]byte, error) {
		x := hmac.New(h.New, []byte("volume key"))
		x.Write(m)
		return x.Sum(nil), nil
	}
	if err := c.MeasureVolumeKey(t.Context(), "root", "uuid", mac); err != nil {
		t.Fatal(err)
	}
	read := func(bank tpm2.TPMIAlgHash, pcr uint) []byte {
		r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: bank, PCRSelect: tpm2.PCClientCompatible.PCRs(pcr)}}}}.Execute(c.link)
		if err != nil || len(r.PCRValues.Digests) != 1 {
			t.Fatalf("bank %#x: %v", bank, err)
		}
		return r.PCRValues.Digests[0].Buffer
	}
	for _, b := range banks {
		h, err := b.Hash()
		if err != nil {
			t.Fatal(err)
		}
		extended := func(digest []byte) []byte {
			x := h.New()
			x.Write(make([]byte, h.Size()))
			x.Write(digest)
			return x.Sum(nil)
		}
		x := h.New()
		x.Write(data)
		if got := read(b, 8); !bytes.Equal(got, extended(x.Sum(nil))) {
			t.Errorf("bank %v: %x", h, got)
		}
		d, err := mac(h, []byte("cryptsetup:root:uuid"))
		if err != nil {
			t.Fatal(err)
		}
		if got := read(b, 15); !bytes.Equal(got, extended(d)) {
			t.Errorf("bank %v, volume key: %x", h, got)
		}
	}
	want := tpmpolicy.Extend([32]byte{}, data)
	if got, err := c.ReadPCR(t.Context(), 8); err != nil || got != want {
		t.Errorf("%x, predicted %x, %v", got, want, err)
	}
	if err := c.Cap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ReadPCR(t.Context(), card.PCRPhase); err != nil || got != tpmpolicy.Extend([32]byte{}, []byte("leave-initrd")) {
		t.Errorf("cap: %x, %v", got, err)
	}
	for name, err := range map[string]error{
		"register 24": c.Extend(t.Context(), 24, data),
		"no data":     c.Extend(t.Context(), 8, nil),
		"too much":    c.Extend(t.Context(), 8, make([]byte, MaxEvent+1)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCounterIsAbsolute(t *testing.T) {
	w := newWorld(t)
	c := open(t, w.chip.Path, Config{})
	if v, err := c.Counter(t.Context()); err != nil || v != 0 {
		t.Errorf("a chip that never counted: %d, %v", v, err)
	}
	for _, to := range []uint64{3, 3, 9} { // restartable: twice is as good as once
		if err := c.RaiseCounter(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		if v, err := c.Counter(t.Context()); err != nil || v != to {
			t.Errorf("%d, want %d, %v", v, to, err)
		}
	}
	w.chip.Reboot(t)
	c = open(t, w.chip.Path, Config{})
	if v, err := c.Counter(t.Context()); err != nil || v != 9 {
		t.Errorf("after a reboot: %d, %v", v, err)
	}
	wantReason(t, "back", c.RaiseCounter(t.Context(), 8), ReasonCounterAhead)
	wantReason(t, "too far", c.RaiseCounter(t.Context(), 9+MaxIncrements+1), ReasonCounterFar)
	if v, err := c.Counter(t.Context()); err != nil || v != 9 {
		t.Errorf("a refusal changed the counter: %d, %v", v, err)
	}
	for _, to := range []uint64{0, tpmpolicy.MaxSequence + 1} {
		if err := c.RaiseCounter(t.Context(), to); err == nil {
			t.Errorf("raised to %d", to)
		}
	}
	// The power is cut between definition and first increment.
	const other = 0x01800099
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(counterPublic(other, false))}).Execute(c.link); err != nil {
		t.Fatal(err)
	}
	c = open(t, w.chip.Path, Config{NVIndex: other})
	if v, err := c.Counter(t.Context()); err != nil || v != 0 {
		t.Errorf("%d, %v", v, err)
	}
	if err := c.RaiseCounter(t.Context(), 20); err != nil {
		t.Error(err)
	}
}

func TestOccupiedHandlesAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	c := open(t, w.chip.Path, Config{})
	states := func(c *TPM) string {
		t.Helper()
		h, err := c.Handles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, x := range h {
			s = append(s, x.Name+"="+string(x.State))
		}
		return strings.Join(s, " ")
	}
	if got := states(c); got != "srk=free ak=free counter=free revocation=free" {
		t.Error(got)
	}
	secret, blob := w.sealed(t)
	c = w.start(t, w.config(t, 5))
	if _, err := c.Enrol(t.Context(), EKECC); err != nil {
		t.Fatal(err)
	}
	if got := states(c); got != "srk=ours ak=ours counter=ours revocation=ours" {
		t.Error(got)
	}
	// The attestation key's handle as storage key and the other way round; a counter that is another.
	cfg := w.config(t, 5)
	cfg.SRK, cfg.AK, cfg.NVIndex, cfg.Revocation = DefaultAK, 0x81000010, 0x01800050, 0x01800051
	public := counterPublic(0x01800050, false)
	public.Attributes.PPWrite = true
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(public)}).Execute(c.link); err != nil {
		t.Fatal(err)
	}
	if _, err := c.makePrimary(tpm2.TPMRHOwner, srkTemplate(), 0x81000010, true); err != nil {
		t.Fatal(err)
	}
	x := open(t, w.chip.Path, cfg)
	if got := states(x); got != "srk=foreign ak=foreign counter=foreign revocation=free" {
		t.Error(got)
	}
	_, err := x.Enrol(t.Context(), EKECC)
	wantReason(t, "enrol", err, ReasonHandleForeign)
	wantReason(t, "raise", x.RaiseCounter(t.Context(), 9), ReasonHandleForeign)
	cfg.NVIndex, cfg.Revocation = DefaultCounter, 0
	x = open(t, w.chip.Path, cfg)
	wantRefused(t, "unseal", x, blob, ReasonHandleForeign)
	_, err = x.Seal(t.Context(), testLabel, secret)
	wantReason(t, "seal", err, ReasonHandleForeign)
	wantSecret(t, c, blob, secret)
}

// The storage key is the one that other software makes and finds by this name.
func TestStorageKeyIsTheOneOfTPM2Tools(t *testing.T) {
	w := newWorld(t)
	_, _ = w.sealed(t)
	c := open(t, w.chip.Path, Config{})
	k, err := c.storageKey(false)
	if err != nil {
		t.Fatal(err)
	}
	zeros, err := c.makePrimary(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.release(zeros)
	if bytes.Equal(k.Name.Buffer, zeros.Name.Buffer) {
		t.Error("made from the template with zeros, which is not systemd's")
	}
}

func TestLockout(t *testing.T) {
	w := newWorld(t)
	secret, blob := w.sealed(t)
	c := w.start(t, w.config(t, 5))
	if err := c.SetupLockout(t.Context(), DefaultLockout); err != nil {
		t.Fatal(err)
	}
	if l, failed, err := c.LockoutState(t.Context()); err != nil || l != DefaultLockout || failed != 0 {
		t.Errorf("%+v, %d, %v", l, failed, err)
	}
	if err := c.SetupLockout(t.Context(), Lockout{}); err == nil {
		t.Error("parameters that lock nobody out")
	}
	// An object with a password is guessed at until the chip has had enough.
	if err := c.SetupLockout(t.Context(), Lockout{MaxTries: 3, Recovery: time.Hour, Reset: time.Hour}); err != nil {
		t.Fatal(err)
	}
	srk, err := c.storageKey(false)
	if err != nil {
		t.Fatal(err)
	}
	template := sealTemplate([32]byte{})
	template.ObjectAttributes.NoDA, template.ObjectAttributes.UserWithAuth = false, true
	made, err := tpm2.Create{ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("1234")},
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte("x")})}},
		InPublic: tpm2.New2B(template)}.Execute(c.link)
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(c.link)
	if err != nil {
		t.Fatal(err)
	}
	defer c.flush(loaded.ObjectHandle)
	guess := func() error {
		_, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: tpm2.PasswordAuth([]byte("0000"))}}.Execute(c.link)
		return reasoned("guess", err)
	}
	for range 3 {
		wantReason(t, "guess", guess(), hardware.ReasonFailed)
	}
	wantReason(t, "one guess too many", guess(), hardware.ReasonLockout)
	if _, failed, err := c.LockoutState(t.Context()); err != nil || failed != 3 {
		t.Errorf("%d counted, %v", failed, err)
	}
	// What pi-init needs to boot has no password: locking others out does not lock it.
	wantSecret(t, c, blob, secret)
}

func TestDeviceKeySigns(t *testing.T) {
	w := newWorld(t)
	c := open(t, w.chip.Path, Config{})
	pub, err := c.DeviceKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	sig, err := c.Sign(t.Context(), digest)
	if err != nil || !ecdsa.VerifyASN1(pub, digest[:], sig) {
		t.Errorf("%v: the signature does not verify", err)
	}
	w.chip.Reboot(t)
	again, err := open(t, w.chip.Path, Config{}).DeviceKey(t.Context())
	if err != nil || !again.Equal(pub) {
		t.Errorf("%v: another key after a reboot", err)
	}
}

func TestReasons(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason hardware.Reason
	}{
		{tpm2.TPMRCPolicyFail + 0x100, hardware.ReasonPolicy}, // with a handle number in it
		{tpm2.TPMRCPolicy, hardware.ReasonPolicy},
		{tpm2.TPMRCPCRChanged, hardware.ReasonPolicy},
		{tpm2.TPMRCLockout, hardware.ReasonLockout},
		{tpm2.TPMRCIntegrity, hardware.ReasonForeignBlob},
		{tpm2.TPMRCRetry, hardware.ReasonBusy},
		{context.DeadlineExceeded, hardware.ReasonBusy},
		{tpm2.TPMRCFailure, hardware.ReasonFailed},
		{errors.New("other"), hardware.ReasonFailed},
		{refuse(ReasonForgotten, "x"), ReasonForgotten},
	} {
		if got := hardware.ReasonOf(reasoned("test", c.err)); got != c.reason {
			t.Errorf("%v: %s, want %s", c.err, got, c.reason)
		}
	}
}

// tpm2-tools read the same chip: what we store is where and what we say.
func TestHandlesSeenByTPM2Tools(t *testing.T) {
	w := newWorld(t)
	_, _ = w.sealed(t)
	out, err := exec.Command("tpm2_getcap", "-T", w.chip.TCTI(), "handles-persistent").CombinedOutput()
	if err != nil {
		t.Fatalf("tpm2_getcap (package tpm2-tools): %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "0x81000001") {
		t.Errorf("%s", out)
	}
}
