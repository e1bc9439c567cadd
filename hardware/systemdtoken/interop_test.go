package systemdtoken

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/systemdtoken/systemdtest"
	hwtpm2 "portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/luks2"
)

const (
	size          = 17 << 20
	firstPassword = "the first passphrase"
)

// world is systemd, a chip that something was measured in, and a volume that a
// passphrase opens.
type world struct {
	*systemdtest.World
	image *os.File
	key   []byte
}

func newWorld(t *testing.T, suite string) *world {
	t.Helper()
	w := &world{World: systemdtest.Start(t, suite), key: make([]byte, luks2.VolumeKeySize)}
	if _, err := rand.Read(w.key); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.image, err = os.OpenFile(filepath.Join(w.Dir, "volume"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.image.Close() })
	if err := w.image.Truncate(size); err != nil {
		t.Fatal(err)
	}
	h, err := luks2.Format(w.image, size, luks2.Options{}, w.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddSlot(w.image, w.key, []byte(firstPassword), luks2.ForChip()); err != nil {
		t.Fatal(err)
	}
	if err := h.Write(w.image); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.Dir, "password"), []byte(firstPassword), 0o600); err != nil {
		t.Fatal(err)
	}
	w.measure(t, "first image")
	return w
}

func (w *world) open(t *testing.T) *hwtpm2.TPM {
	t.Helper()
	chip, err := hwtpm2.Open(w.Chip.Path, hwtpm2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { chip.Close() })
	return chip
}

func (w *world) extend(t *testing.T, pcr int, data string) {
	t.Helper()
	if err := w.open(t).Extend(t.Context(), pcr, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

// measure is a boot: registers 7 and 8 with whatever, 11 as systemd's stub and
// pcrphase fill it for an image that has only a kernel.
func (w *world) measure(t *testing.T, image string) {
	t.Helper()
	w.extend(t, 7, "measured")
	w.extend(t, 8, "measured")
	for _, data := range []string{".linux\x00", image, "enter-initrd"} {
		w.extend(t, 11, data)
	}
}

// enroll runs systemd-cryptenroll on the volume.
func (w *world) enroll(t *testing.T, env []string, args ...string) string {
	t.Helper()
	args = append(args, w.Path("volume"))
	out, err := w.Run(t, append(env, "PASSWORD="+firstPassword), "/usr/bin/systemd-cryptenroll", args...)
	if err != nil {
		t.Fatalf("systemd-cryptenroll %v: %v\n%s", args, err, out)
	}
	return out
}

func (w *world) header(t *testing.T) *luks2.Header {
	t.Helper()
	h, _, err := luks2.Read(w.image, size)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// token returns the only systemd-tpm2 token.
func (w *world) token(t *testing.T) (*Token, []byte, []int) {
	t.Helper()
	for _, x := range w.header(t).Tokens() {
		if x.Type == Type {
			tok, err := Parse(x.JSON)
			if err != nil {
				t.Fatalf("%v\n%s", err, x.JSON)
			}
			return tok, x.JSON, x.Slots
		}
	}
	t.Fatal("no token")
	return nil, nil, nil
}

// opens unseals the token of systemd and opens its keyslot.
func (w *world) opens(t *testing.T, opt Options) {
	t.Helper()
	tok, _, slots := w.token(t)
	pass, err := Unseal(t.Context(), w.open(t), tok, opt)
	if err != nil {
		t.Error(err)
		return
	}
	key, _, err := w.header(t).Unlock(w.image, pass, slots...)
	if err != nil || string(key) != string(w.key) {
		t.Errorf("systemd's keyslot: %v", err)
	}
}

func (w *world) refuses(t *testing.T, what string, opt Options, reason hardware.Reason) {
	t.Helper()
	tok, _, _ := w.token(t)
	pass, err := Unseal(t.Context(), w.open(t), tok, opt)
	var e *hardware.Error
	if !errors.As(err, &e) || e.Reason != reason || pass != nil {
		t.Errorf("%s: %v, want reason %s", what, err, reason)
	}
}

func TestWeOpenWhatSystemdBoundToRegisters(t *testing.T) {
	for _, suite := range []string{systemdtest.Trixie, systemdtest.Bookworm} {
		w := newWorld(t, suite)
		w.enroll(t, nil, "--tpm2-device="+w.TCTI(), "--tpm2-pcrs=7+8")
		w.opens(t, Options{})
		// Another boot with the same values.
		w.Chip.Reboot(t)
		w.measure(t, "another image")
		w.opens(t, Options{})
		w.extend(t, 8, "more")
		w.refuses(t, suite+", other registers", Options{}, hardware.ReasonPolicy)
		other := newWorld(t, suite)
		w.Chip = other.Chip
		w.refuses(t, suite+", another chip", Options{}, hardware.ReasonForeignBlob)
	}
}

func TestWeOpenSystemdsPIN(t *testing.T) {
	for _, suite := range []string{systemdtest.Trixie, systemdtest.Bookworm} {
		w := newWorld(t, suite)
		w.enroll(t, []string{"NEWPIN=4711"}, "--tpm2-device="+w.TCTI(), "--tpm2-pcrs=7", "--tpm2-with-pin=yes")
		w.opens(t, Options{PIN: []byte("4711")})
		w.refuses(t, suite+", no PIN", Options{}, ReasonPINNeeded)
		w.refuses(t, suite+", wrong PIN", Options{PIN: []byte("4712")}, ReasonPINWrong)
		w.opens(t, Options{PIN: []byte("4711")})
	}
}

// policyKey is a release's key for systemd's signed policies, on disk for systemd.
func (w *world) policyKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"key": {Type: "PRIVATE KEY", Bytes: private}, "key.pub": {Type: "PUBLIC KEY", Bytes: public}} {
		if err := os.WriteFile(filepath.Join(w.Dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return key
}

// sign has systemd-measure sign what register 11 is with an image.
func (w *world) sign(t *testing.T, image string) *Signatures {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.Dir, "linux"), []byte(image), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := w.Run(t, []string{"SYSTEMD_LOG_LEVEL=err"}, "/usr/lib/systemd/systemd-measure", "sign", "--linux="+w.Path("linux"), "--phase=enter-initrd", "--bank=sha256",
		"--tpm2-device="+w.TCTI(), "--private-key="+w.Path("key"), "--public-key="+w.Path("key.pub"))
	if err != nil {
		t.Fatalf("systemd-measure: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(w.Dir, systemdtest.Signature), []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := ParseSignatures([]byte(out))
	if err != nil || len(s.entries) != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	return s
}

func TestWeOpenWhatSystemdBoundToASignedPolicy(t *testing.T) {
	for _, literal := range []string{"", "7"} {
		w := newWorld(t, systemdtest.Trixie)
		w.policyKey(t)
		first := w.sign(t, "first image")
		w.enroll(t, nil, "--tpm2-device="+w.TCTI(), "--tpm2-pcrs="+literal, "--tpm2-public-key="+w.Path("key.pub"),
			"--tpm2-public-key-pcrs=11", "--tpm2-signature="+w.Path(systemdtest.Signature))
		w.opens(t, Options{Signatures: first})
		w.refuses(t, "no signature", Options{}, hwtpm2.ReasonPolicyFile)
		// Another image: what was signed does not hold, what is signed now does.
		w.Chip.Reboot(t)
		w.measure(t, "another image")
		w.refuses(t, "other registers", Options{Signatures: first}, hwtpm2.ReasonPolicyFile)
		second := w.sign(t, "another image")
		w.opens(t, Options{Signatures: second})
		// An attacker signs with a key of his own and names the right one.
		forged := *second
		forged.entries = append([]entry(nil), second.entries...)
		forged.entries[0].signature = signPolicy(t, w.policyKey(t), forged.entries[0].policy)
		w.refuses(t, "signed by another key", Options{Signatures: &forged}, hwtpm2.ReasonPolicyFile)
		if literal != "" {
			w.extend(t, 7, "more")
			w.refuses(t, "other literal registers", Options{Signatures: second}, hardware.ReasonPolicy)
		}
	}
}

func signPolicy(t *testing.T, key *rsa.PrivateKey, policy []byte) []byte {
	t.Helper()
	h := sha256.Sum256(policy)
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, h[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// enrolOurs adds a slot and a token of ours.
func (w *world) enrolOurs(t *testing.T, e Enrolment) *Token {
	t.Helper()
	tok, pass, err := Enrol(t.Context(), w.open(t), e)
	if err != nil {
		t.Fatal(err)
	}
	h := w.header(t)
	slot, err := h.AddSlot(w.image, w.key, pass, luks2.ForChip())
	if err != nil {
		t.Fatal(err)
	}
	tok.Keyslots = []string{string(rune('0' + slot))}
	j, err := tok.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.SetToken(-1, j); err != nil {
		t.Fatal(err)
	}
	if err := h.Write(w.image); err != nil {
		t.Fatal(err)
	}
	return tok
}

var modhex = regexp.MustCompile(`[cbdefghijklnrtuv]{8}(-[cbdefghijklnrtuv]{8}){7}`)

// unlocks has systemd open the volume with its TPM token, which it proves by
// adding a recovery key. Returns what it printed.
func (w *world) unlocks(t *testing.T) (string, error) {
	t.Helper()
	return w.Run(t, nil, "/usr/bin/systemd-cryptenroll", "--unlock-tpm2-device="+w.TCTI(), "--recovery-key", w.Path("volume"))
}

func TestSystemdOpensWhatWeBoundToRegisters(t *testing.T) {
	w := newWorld(t, systemdtest.Trixie)
	w.enrolOurs(t, Enrolment{PCRs: []int{7, 8}})
	w.opens(t, Options{})
	out, err := w.unlocks(t)
	if err != nil || !modhex.MatchString(out) {
		t.Fatalf("systemd does not open it: %v\n%s", err, out)
	}
	w.extend(t, 8, "more")
	if out, err := w.unlocks(t); err == nil {
		t.Errorf("systemd opens it with other registers\n%s", out)
	}
}

func TestSystemdOpensWhatWeBoundToASignedPolicy(t *testing.T) {
	w := newWorld(t, systemdtest.Trixie)
	key := w.policyKey(t)
	w.enrolOurs(t, Enrolment{PCRs: []int{7}, PublicKey: &key.PublicKey, PublicKeyPCRs: []int{11}})
	// systemd looks for signatures where the running system has them.
	signature := w.sign(t, "first image")
	w.opens(t, Options{Signatures: signature})
	out, err := w.unlocks(t)
	if err != nil || !modhex.MatchString(out) {
		t.Fatalf("systemd does not open it: %v\n%s", err, out)
	}
	w.Chip.Reboot(t)
	w.measure(t, "another image")
	if out, err := w.unlocks(t); err == nil {
		t.Errorf("systemd opens it with an image that nobody signed\n%s", out)
	}
}

func TestRecoveryKeyOfSystemdOpens(t *testing.T) {
	w := newWorld(t, systemdtest.Trixie)
	shown := modhex.FindString(w.enroll(t, nil, "--recovery-key"))
	if shown == "" {
		t.Fatal("systemd showed no recovery key")
	}
	// As a human types it: capitals, spaces, no dashes.
	for _, typed := range []string{shown, strings.ToUpper(shown), strings.ReplaceAll(shown, "-", " "), strings.ReplaceAll(shown, "-", "") + "\n"} {
		r, err := luks2.ParseRecoveryKey([]byte(typed))
		if err != nil {
			t.Fatal(err)
		}
		key, _, err := w.header(t).Unlock(w.image, r.Passphrase(), w.recoverySlots(t)...)
		if err != nil || string(key) != string(w.key) {
			t.Errorf("the recovery key does not open: %v", err)
		}
	}
}

func (w *world) recoverySlots(t *testing.T) []int {
	t.Helper()
	for _, x := range w.header(t).Tokens() {
		if x.Type == "systemd-recovery" {
			return x.Slots
		}
	}
	t.Fatal("no systemd-recovery token")
	return nil
}

func TestWeOpenWhatWeEnrolled(t *testing.T) {
	w := newWorld(t, systemdtest.Trixie)
	key := w.policyKey(t)
	tok := w.enrolOurs(t, Enrolment{PublicKey: &key.PublicKey, PublicKeyPCRs: []int{11}})
	v, err := w.open(t).ReadPCR(t.Context(), 11)
	if err != nil {
		t.Fatal(err)
	}
	policy := tpmpolicy.PCRPolicy(map[int][32]byte{11: v})
	fingerprint := sha256.Sum256(x509.MarshalPKCS1PublicKey(&key.PublicKey))
	file, err := json.Marshal(map[string]any{"sha256": []map[string]any{{"pcrs": []int{11}, "pkfp": hex.EncodeToString(fingerprint[:]),
		"pol": hex.EncodeToString(policy[:]), "sig": base64.StdEncoding.EncodeToString(signPolicy(t, key, policy[:]))}}, "sm3": []any{}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSignatures(file)
	if err != nil {
		t.Fatal(err)
	}
	w.opens(t, Options{Signatures: s})
	if tok.PIN || len(tok.PCRs) != 0 {
		t.Errorf("%+v", tok)
	}
	_, _, err = Enrol(context.Background(), w.open(t), Enrolment{PCRs: []int{9}})
	if hardware.ReasonOf(err) != hwtpm2.ReasonPCREmpty {
		t.Errorf("bound to an empty register: %v", err)
	}
	for name, e := range map[string]Enrolment{"nothing": {}, "a key without registers": {PCRs: []int{7}, PublicKey: &key.PublicKey}, "registers without a key": {PublicKeyPCRs: []int{11}}} {
		if _, _, err := Enrol(context.Background(), w.open(t), e); err == nil {
			t.Errorf("%s: enrolled", name)
		}
	}
}
