package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/hardware"
	"portcullis/hardware/otp"
	"portcullis/hardware/pins"
	"portcullis/hardware/rearm"
	"portcullis/hardware/setup"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/luks2"
	"portcullis/internal/cli"
)

// rootRun runs a root command and returns its exit code and what it printed.
func rootRun(t *testing.T, in string, args ...string) (int, string, string) {
	t.Helper()
	var out, errOut bytes.Buffer
	root := &cli.Command{Sub: []*cli.Command{rootCommand()}}
	code := cli.Run(t.Context(), root, &cli.IO{In: strings.NewReader(in), Out: &out, Err: &errOut}, append([]string{"root"}, args...))
	return code, out.String(), errOut.String()
}

// movedCard is a running Pi whose card came from another one: files instead of
// partitions, a chip that measured this release and knows nothing of the volume.
type movedCard struct {
	chip                  *tpmtest.Chip
	crypt, boot, handover string
	config                tpm2.Config
	recovery              *luks2.RecoveryKey
	volumeKey             []byte
	uuid                  string
	oldSlot               int
}

func newMovedCard(t *testing.T) *movedCard {
	t.Helper()
	dir := t.TempDir()
	m := &movedCard{chip: tpmtest.Start(t), crypt: filepath.Join(dir, "crypt"), boot: filepath.Join(dir, "boot"), handover: filepath.Join(dir, "pi.json")}
	policyKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	m.volume(t)
	events := tpmpolicy.SelfEvents(sha256.Sum256([]byte("boot")), "cmdline")
	signed, err := tpmpolicy.Sign(policyKey, tpmpolicy.Branch{Platform: tpmpolicy.PlatformSelf, Sequence: 3, PCRs: tpmpolicy.Predict(nil, events...), NVIndex: tpm2.DefaultCounter})
	must(t, err)
	file := &tpmpolicy.File{Version: tpmpolicy.FileVersion, Sequence: 3, Branches: []tpmpolicy.Signed{signed}}
	m.config = tpm2.Config{PolicyKey: &policyKey.PublicKey, Platform: tpmpolicy.PlatformSelf, Policy: file}
	m.measure(t, events)
	policy, err := file.Encode()
	must(t, err)
	f, err := os.Create(m.boot)
	must(t, err)
	must(t, f.Truncate(card.BootSize))
	must(t, fat.Build(f, fat.Options{Size: card.BootSize, Label: card.LabelBootA}, map[string][]byte{card.PolicyFile: policy}))
	must(t, f.Close())
	m.writeHandover(t, &policyKey.PublicKey)
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// volume makes a volume with the keyslot of a chip that is gone and one for a person.
func (m *movedCard) volume(t *testing.T) {
	t.Helper()
	f, err := os.Create(m.crypt)
	must(t, err)
	defer f.Close()
	const size = card.CryptHeader + 1<<20
	must(t, f.Truncate(size))
	m.volumeKey = make([]byte, luks2.VolumeKeySize)
	_, err = rand.Read(m.volumeKey)
	must(t, err)
	h, err := luks2.Format(f, size, luks2.Options{}, m.volumeKey)
	must(t, err)
	m.uuid = h.UUID()
	m.oldSlot, err = h.AddSlot(f, m.volumeKey, []byte("the old chip's secret"), luks2.ForChip())
	must(t, err)
	old, err := (&hardware.Token{Type: hardware.TokenType, Keyslots: []string{fmt.Sprint(m.oldSlot)}, Version: 1, State: hardware.StateCommitted,
		Backend: hardware.BackendTPM2, Posture: hardware.PostureSignedBootOTP, Platform: "self", Enrolled: "2026-01-01T00:00:00Z", Blob: json.RawMessage(`{}`)}).Encode()
	must(t, err)
	_, err = h.SetToken(-1, old)
	must(t, err)
	m.recovery, err = luks2.NewRecoveryKey(nil)
	must(t, err)
	slot, err := h.AddSlot(f, m.volumeKey, m.recovery.Passphrase(), luks2.ForChip())
	must(t, err)
	_, err = h.SetToken(-1, json.RawMessage(fmt.Sprintf(`{"type":"systemd-recovery","keyslots":["%d"]}`, slot)))
	must(t, err)
	must(t, h.Write(f))
}

func (m *movedCard) measure(t *testing.T, events []tpmpolicy.Event) {
	t.Helper()
	c, err := tpm2.Open(m.chip.Path, m.config)
	must(t, err)
	defer c.Close()
	for _, e := range events {
		must(t, c.Extend(t.Context(), e.PCR, e.Data))
	}
}

func (m *movedCard) writeHandover(t *testing.T, policy *ecdsa.PublicKey) {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(policy)
	must(t, err)
	release, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	b, err := (&card.Handover{Schema: card.HandoverSchema, Model: card.ModelQEMU, Profile: card.ProfileRelease, Sequence: 3, Slot: card.SlotA,
		Posture: string(hardware.PostureCardTheft), Platform: "self", Backend: string(hardware.BackendTPM2), Recovered: true, ChipProblem: "root-foreign-blob",
		UnlockedBy: card.UnlockedByRecovery, ReleaseKeys: [][]byte{release}, Threshold: 1, PolicyKey: der, NVIndex: tpm2.DefaultCounter}).Encode()
	must(t, err)
	must(t, os.WriteFile(m.handover, b, 0o644))
}

func (m *movedCard) rearm(t *testing.T, in string) (int, string, string) {
	return rootRun(t, in, "rearm", "--tpm", m.chip.Path, "--device", m.crypt, "--boot", m.boot, "--handover", m.handover, "--json")
}

func TestRearmBindsAMovedCardToTheChipThatIsHere(t *testing.T) {
	m := newMovedCard(t)
	code, out, errOut := m.rearm(t, strings.ToUpper(string(m.recovery.Passphrase()))+"\n")
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errOut)
	}
	var r rearm.Result
	must(t, json.Unmarshal([]byte(out), &r))
	if len(r.Removed) != 1 || r.Removed[0] != m.oldSlot || r.UUID != m.uuid {
		t.Errorf("%+v", r)
	}
	if strings.Contains(out+errOut, string(m.recovery.Passphrase())) {
		t.Error("the recovery key was printed")
	}
	// What the next boot does: the chip gives the secret, the secret opens the keyslot.
	f, err := os.Open(m.crypt)
	must(t, err)
	defer f.Close()
	h, _, err := luks2.Read(f, card.CryptHeader+1<<20)
	must(t, err)
	c, err := tpm2.Open(m.chip.Path, m.config)
	must(t, err)
	defer c.Close()
	for _, tok := range h.Tokens() {
		if tok.Type != hardware.TokenType {
			continue
		}
		p, err := hardware.ParseToken(tok.JSON)
		must(t, err)
		if p.Posture != hardware.PostureCardTheft {
			t.Errorf("posture %s: that of the old Pi", p.Posture)
		}
		secret, err := c.Unseal(t.Context(), card.SealLabel(h.UUID()), p.Blob)
		must(t, err)
		key, slot, err := h.Unlock(f, card.ChipPassphrase(secret), tok.Slots...)
		if err != nil || slot != r.Slot || !bytes.Equal(key, m.volumeKey) {
			t.Errorf("slot %d, %v", slot, err)
		}
	}
	if _, _, err := h.Unlock(f, []byte("the old chip's secret")); luks2.ReasonOf(err) != luks2.ReasonPassphrase {
		t.Errorf("the old chip's secret still opens the volume: %v", err)
	}
	if _, _, err := h.Unlock(f, m.recovery.Passphrase()); err != nil {
		t.Errorf("the recovery key does not open the volume any more: %v", err)
	}
}

func TestRearmRefusals(t *testing.T) {
	m := newMovedCard(t)
	before, err := os.ReadFile(m.crypt)
	must(t, err)
	other, err := luks2.NewRecoveryKey(nil)
	must(t, err)
	for name, in := range map[string]string{"nothing": "", "not a key": "hello\n", "another key": string(other.Passphrase()) + "\n", "endless": strings.Repeat("c", 4096)} {
		if code, out, errOut := m.rearm(t, in); code != 1 {
			t.Errorf("%s: exit %d\n%s%s", name, code, out, errOut)
		}
	}
	after, err := os.ReadFile(m.crypt)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("a refusal changed the volume")
	}
	if code, _, _ := rootRun(t, "", "rearm", "--handover", filepath.Join(t.TempDir(), "none")); code != 1 {
		t.Errorf("exit %d on a machine that is no Pi", code)
	}
	if code, _, _ := rootRun(t, "", "rearm", "--backend", "softhsm", "--tpm", m.chip.Path, "--device", m.crypt, "--boot", m.boot, "--handover", m.handover); code != 2 {
		t.Errorf("exit %d for a backend that holds no disk's key", code)
	}
	// A policy that the release did not sign: nothing is sealed under it.
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	m.writeHandover(t, &stranger.PublicKey)
	if code, _, errOut := m.rearm(t, string(m.recovery.Passphrase())); code != 1 || !strings.Contains(errOut, string(tpm2.ReasonPolicyFile)) {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestStatusNamesWhatIsWrong(t *testing.T) {
	m := newMovedCard(t)
	s := setup.Gather(setup.Paths{Handover: m.handover, Device: m.crypt, Dir: t.TempDir()})
	all := strings.Join(s.Warnings, "\n")
	if len(s.Errors) != 0 || s.Posture != hardware.PostureCardTheft || s.Volume.Recovery != 1 || len(s.Volume.Bindings) != 1 {
		t.Errorf("%+v %+v", s, s.Volume)
	}
	for _, want := range []string{"root rearm", "card-theft", "was enrolled in posture signed-boot+otp"} {
		if !strings.Contains(all, want) {
			t.Errorf("no warning says %q:\n%s", want, all)
		}
	}
	code, out, _ := rootRun(t, "", "status", "--dir", t.TempDir(), "--device", m.crypt)
	if code != 1 || !strings.Contains(out, "not started by pi-init") || !strings.Contains(out, m.uuid) {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestSetupTPMTestAndHandles(t *testing.T) {
	chip, dir := tpmtest.Start(t), t.TempDir()
	for range 2 {
		code, out, errOut := rootRun(t, "", "setup-tpm", "--tpm", chip.Path, "--dir", dir, "--ak", "0x81008042", "--json")
		var s setup.State
		if code != 0 || json.Unmarshal([]byte(out), &s) != nil || s.TPM.Handles["ak"] != "0x81008042" {
			t.Fatalf("exit %d\n%s%s", code, out, errOut)
		}
	}
	if code, out, _ := rootRun(t, "", "test", "--dir", dir); code != 0 || !strings.Contains(out, "ok     signature") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, _, errOut := rootRun(t, "", "setup-tpm", "--tpm", chip.Path, "--dir", dir, "--ak", "0x81000001"); code != 1 || !strings.Contains(errOut, "storage key") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	if code, _, _ := rootRun(t, "", "setup-tpm", "--ak", "ours"); code != 2 {
		t.Errorf("exit %d for a handle that is none", code)
	}
	chip.Close()
	if code, _, _ := rootRun(t, "", "test", "--dir", dir); code != 1 {
		t.Errorf("exit %d with a dead chip", code)
	}
	if code, out, _ := rootRun(t, "", "test", "--dir", t.TempDir()); code != 1 || !strings.Contains(out, "full-setup") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestFullSetupTakesWhatIsThere(t *testing.T) {
	chip, dir := tpmtest.Start(t), t.TempDir()
	code, out, errOut := rootRun(t, "", "full-setup", "--tpm", chip.Path, "--dir", dir)
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errOut)
	}
	s, err := setup.Load(dir)
	if err != nil || s.TPM == nil || s.SoftHSM != nil {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestSetupSoftHSMCommand(t *testing.T) {
	dir := t.TempDir()
	code, out, errOut := rootRun(t, "", "setup-softhsm", "--dir", dir)
	if code != 0 {
		t.Fatalf("exit %d\n%s%s (needs the package softhsm2)", code, out, errOut)
	}
	if code, out, _ := rootRun(t, "", "test", "--dir", dir, "--json"); code != 0 || !strings.Contains(out, "protects nothing") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

func TestPrepareOTPAsksForTheWholeSentence(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, otp.Bits)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	must(t, err)
	dir := t.TempDir()
	pub, out := filepath.Join(dir, "release.boot.pub"), filepath.Join(dir, "otp")
	must(t, os.WriteFile(pub, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644))
	for _, in := range []string{"", "yes\n", "y\n", "only key 00000000 will ever boot this pi\n", strings.ToUpper(otp.Confirmation(&k.PublicKey)) + "\n"} {
		if code, _, _ := rootRun(t, in, "prepare-otp", "--key", pub, "--model", "pi4", "--out", out); code != 1 {
			t.Errorf("%q: exit %d", in, code)
		}
		if _, err := os.Stat(out); err == nil {
			t.Fatalf("%q: files were written", in)
		}
	}
	code, stdout, errOut := rootRun(t, otp.Confirmation(&k.PublicKey)+"\n", "prepare-otp", "--key", pub, "--model", "pi4", "--out", out)
	if code != 0 || !strings.Contains(stdout, "nothing was burnt") {
		t.Fatalf("exit %d\n%s%s", code, stdout, errOut)
	}
	b, err := os.ReadFile(filepath.Join(out, otp.FileBurnCfg))
	if err != nil || !bytes.Contains(b, []byte("program_pubkey=1")) {
		t.Errorf("%s, %v", b, err)
	}
	if code, _, _ := rootRun(t, otp.Confirmation(&k.PublicKey)+"\n", "prepare-otp", "--key", pub, "--model", "pi4", "--out", out); code != 1 {
		t.Errorf("exit %d: an older directory was written over", code)
	}
	if code, _, _ := rootRun(t, "", "prepare-otp", "--key", pub); code != 2 {
		t.Errorf("exit %d without --model and --out", code)
	}
}

func TestDetectReportsAsJSON(t *testing.T) {
	_, out, errOut := rootRun(t, "", "detect", "--json")
	var r struct{ Posture string }
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Posture == "" {
		t.Errorf("%v\n%s%s", err, out, errOut)
	}
}

func TestWatchChecksItsConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tamper.yaml")
	must(t, os.WriteFile(file, []byte("schema: portcullis/tamper/v1\nzymbit: true\ntamper:\n  sources: {perimeter-0: lock}\n  lock: lock this pi\n"), 0o600))
	if code, out, errOut := rootRun(t, "", "watch", "--check", "--config", file); code != 0 || !strings.Contains(out, "lock") {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	must(t, os.WriteFile(file, []byte("schema: portcullis/tamper/v1\nzymbit: true\ntamper:\n  sources: {perimeter-0: destroy}\n"), 0o600))
	if code, _, errOut := rootRun(t, "", "watch", "--check", "--config", file); code != 1 || !strings.Contains(errOut, "erase my disk") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

func TestPressRefusesWhatIsNotWired(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tamper.yaml")
	must(t, os.WriteFile(file, []byte("schema: portcullis/tamper/v1\nzymbit: true\n"), 0o600))
	if code, _, errOut := rootRun(t, "", "press", "power", "--config", file); code != 1 || !strings.Contains(errOut, string(pins.ReasonNotWired)) {
		t.Errorf("exit %d: %s", code, errOut)
	}
	for _, words := range [][]string{{"press"}, {"press", "hard"}, {"press", "power", "reset"}} {
		if code, _, _ := rootRun(t, "", words...); code != 2 {
			t.Errorf("%q: exit %d", words, code)
		}
	}
}
