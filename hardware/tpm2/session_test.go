package tpm2

import (
	"bytes"
	"testing"

	"portcullis/hardware"

	"github.com/google/go-tpm/tpm2"
)

// Passwords with zero octets anywhere: only those at the end do not count.
func TestPasswordsWithZeroOctets(t *testing.T) {
	w := newWorld(t)
	b, c := w.bus(t, Config{})
	if err := c.SetupLockout(t.Context(), DefaultLockout); err != nil {
		t.Fatal(err)
	}
	secret := []byte("a secret behind a password......")
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := (tpm2.PolicyAuthValue{}).Update(calc); err != nil {
		t.Fatal(err)
	}
	srk, err := c.storageKey(true)
	if err != nil {
		t.Fatal(err)
	}
	template := sealTemplate([32]byte(calc.Hash().Digest))
	template.ObjectAttributes.NoDA, template.ObjectAttributes.AdminWithPolicy = false, false
	for _, password := range [][]byte{{1, 2, 3}, {1, 0, 3}, {0, 0, 3}, {1, 0, 0, 0, 5, 0, 7}, {1, 2, 0}, bytes.Repeat([]byte{9}, 32)} {
		made, err := tpm2.Create{ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: password},
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
			InPublic: tpm2.New2B(template)}.Execute(c.link)
		if err != nil {
			t.Fatal(err)
		}
		o := &Object{SRK: srk.Name.Buffer, Public: made.OutPublic.Bytes(), Private: made.OutPrivate.Buffer, Auth: password}
		b.seen = nil
		got, err := c.UnsealObject(t.Context(), o, (*PolicyRun).AuthValue)
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("password %x: %v", password, err)
		}
		if b.contains(secret) || len(password) > 8 && b.contains(password) {
			t.Errorf("password %x: it or the secret crossed the bus in the clear", password)
		}
		o.Auth = append(bytes.Clone(password), 1)
		_, err = c.UnsealObject(t.Context(), o, (*PolicyRun).AuthValue)
		wantReason(t, "wrong password", err, hardware.ReasonFailed)
	}
	// An answer that something on the bus changed.
	made, err := tpm2.Create{ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("x")},
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
		InPublic: tpm2.New2B(template)}.Execute(c.link)
	if err != nil {
		t.Fatal(err)
	}
	b.answer = func(command, answer []byte) ([]byte, error) {
		if commandCode(command) == tpm2.TPMCCUnseal && len(answer) > 20 {
			answer[20] ^= 1
		}
		return answer, nil
	}
	o := &Object{SRK: srk.Name.Buffer, Public: made.OutPublic.Bytes(), Private: made.OutPrivate.Buffer, Auth: []byte("x")}
	got, err := c.UnsealObject(t.Context(), o, (*PolicyRun).AuthValue)
	wantReason(t, "changed answer", err, hardware.ReasonFailed)
	if got != nil {
		t.Error("a secret came out")
	}
}
