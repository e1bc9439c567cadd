package tpm2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"portcullis/hardware"
	"portcullis/hardware/tpmattest"

	"github.com/google/go-tpm/tpm2"
)

// Object is a sealed object under the chip's storage key. Package systemdtoken
// reads and makes such of systemd's kind.
type Object struct {
	// SRK is the name of the storage key that it was sealed under. Empty: not
	// known, which old formats permit; then Parent is a template.
	SRK []byte
	// Parent is the template of a primary key to make where SRK is not known.
	Parent *tpm2.TPMTPublic

	Public  []byte // TPMT_PUBLIC
	Private []byte // TPM2B_PRIVATE's buffer
	// Auth is the object's password (systemd: SHA-256 of a PIN), empty for none.
	Auth []byte
}

// PolicyRun is a policy session under way.
type PolicyRun struct {
	t *TPM
	s tpm2.Session
}

// StorageKey returns the storage key's handle and public area (TPMT_PUBLIC),
// making the key where it is missing.
func (t *TPM) StorageKey(ctx context.Context) (handle uint32, public []byte, err error) {
	err = t.do(ctx, "storage key", func() error {
		k, err := t.storageKey(true)
		if err != nil {
			return err
		}
		handle, public = uint32(k.Handle), tpm2.Marshal(k.Public)
		return nil
	})
	return handle, public, err
}

// SealObject seals data (1 to 128 bytes) under the storage key so that only the
// policy opens it. No counter and no label are added: systemd knows neither.
func (t *TPM) SealObject(ctx context.Context, policy [32]byte, data []byte) (*Object, error) {
	var o *Object
	err := t.do(ctx, "seal object", func() error {
		srk, err := t.storageKey(true)
		if err != nil {
			return err
		}
		defer t.release(srk)
		template := sealTemplate(policy)
		template.ObjectAttributes.AdminWithPolicy = false // as systemd makes it
		o, err = t.create(srk, template, data)
		return err
	})
	return o, err
}

// create seals data under srk, in a session that hides it from the bus.
func (t *TPM) create(srk *key, template tpm2.TPMTPublic, data []byte) (*Object, error) {
	r, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.Handle, Name: srk.Name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize,
			tpm2.Salted(srk.Handle, srk.Public), tpm2.AESEncryption(128, tpm2.EncryptIn))},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data})}},
		InPublic: tpm2.New2B(template),
	}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	return &Object{SRK: srk.Name.Buffer, Public: r.OutPublic.Bytes(), Private: r.OutPrivate.Buffer}, nil
}

// UnsealObject opens an object: steps runs the policy's commands.
func (t *TPM) UnsealObject(ctx context.Context, o *Object, steps func(*PolicyRun) error) ([]byte, error) {
	var data []byte
	err := t.do(ctx, "unseal object", func() error {
		public, err := unmarshalPublic(o.Public)
		if err != nil {
			return err
		}
		parent, err := t.parent(o)
		if err != nil {
			return err
		}
		defer t.release(parent)
		data, err = t.open(parent, public, o, steps)
		return err
	})
	return data, err
}

// parent returns the key that an object was sealed under, never another one:
// whoever answers on the bus would learn the session's secret.
func (t *TPM) parent(o *Object) (*key, error) {
	if len(o.SRK) == 0 {
		if o.Parent == nil {
			return nil, refuse(hardware.ReasonBadBlob, "no storage key is named")
		}
		return t.makePrimary(tpm2.TPMRHOwner, *o.Parent, 0, false)
	}
	srk, err := t.storageKey(false)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(srk.Name.Buffer, o.SRK) {
		t.release(srk)
		return nil, refuse(hardware.ReasonForeignBlob, "sealed under storage key %x, this chip shows %x: another chip, or it was cleared", o.SRK, srk.Name.Buffer)
	}
	return srk, nil
}

// open loads an object and unseals it in a session that hides the answer from the bus.
func (t *TPM) open(parent *key, public *tpm2.TPMTPublic, o *Object, steps func(*PolicyRun) error) ([]byte, error) {
	loaded, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: parent.Handle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: o.Private},
		InPublic:     tpm2.New2B(*public),
	}.Execute(t.link)
	if err != nil {
		err = as(err, hardware.ReasonBadBlob, tpm2.TPMRCSize, tpm2.TPMRCInsufficient, tpm2.TPMRCAttributes, tpm2.TPMRCType, tpm2.TPMRCHash, tpm2.TPMRCScheme)
		return nil, fmt.Errorf("load: %w", err)
	}
	defer t.flush(loaded.ObjectHandle)
	session, err := t.policySession(parent, o.Auth)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	defer t.flush(session.Handle())
	if err := steps(&PolicyRun{t, session}); err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, err
	}
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: *name, Auth: session}}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	return r.OutData.Buffer, nil
}

// policySession starts a session that hides answers from the bus.
func (t *TPM) policySession(parent *key, password []byte) (tpm2.Session, error) {
	if len(password) > 0 {
		return startPasswordSession(t.link, parent, password)
	}
	s, _, err := tpm2.PolicySession(t.link, tpm2.TPMAlgSHA256, nonceSize, tpm2.Salted(parent.Handle, parent.Public), tpm2.AESEncryption(128, tpm2.EncryptOut))
	return s, err
}

// PCRs asserts registers of a bank as they are now.
func (p *PolicyRun) PCRs(bank tpm2.TPMIAlgHash, pcrs []int) error {
	s := tpmattest.Selection(pcrs...)
	s.PCRSelections[0].Hash = bank
	_, err := tpm2.PolicyPCR{PolicySession: p.s.Handle(), Pcrs: s}.Execute(p.t.link)
	if err != nil {
		return fmt.Errorf("registers: %w", err)
	}
	return nil
}

// counter asserts that a counter is at most most.
func (p *PolicyRun) counter(index uint32, most uint64) error {
	_, err := tpm2.PolicyNV{AuthHandle: counterAuth(index, true), NVIndex: counterHandle(index, true), PolicySession: p.s.Handle(),
		OperandB: tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, most)}, Operation: tpm2.TPMEOUnsignedLE}.Execute(p.t.link)
	if err != nil {
		return fmt.Errorf("counter %#x: %w", index, as(err, hardware.ReasonPolicy, tpm2.TPMRCHandle, tpm2.TPMRCNVUninitialized))
	}
	return nil
}

// Digest is the policy's digest so far.
func (p *PolicyRun) Digest() ([]byte, error) {
	r, err := tpm2.PolicyGetDigest{PolicySession: p.s.Handle()}.Execute(p.t.link)
	if err != nil {
		return nil, err
	}
	return r.PolicyDigest.Buffer, nil
}

// AuthValue asserts that the object's password is known.
func (p *PolicyRun) AuthValue() error {
	_, err := tpm2.PolicyAuthValue{PolicySession: p.s.Handle()}.Execute(p.t.link)
	return err
}

// Authorize replaces the policy so far, approved, by the authority of a key that
// signed it for ref.
func (p *PolicyRun) Authorize(signer tpm2.TPMTPublic, signature tpm2.TPMTSignature, approved, ref []byte) error {
	loaded, err := tpm2.LoadExternal{InPublic: tpm2.New2B(signer), Hierarchy: tpm2.TPMRHOwner}.Execute(p.t.link)
	if err != nil {
		return fmt.Errorf("load policy key: %w", err)
	}
	defer p.t.flush(loaded.ObjectHandle)
	name, err := tpm2.ObjectName(&signer)
	if err != nil {
		return err
	}
	if !bytes.Equal(loaded.Name.Buffer, name.Buffer) {
		return errors.New("the chip loaded another policy key")
	}
	hash := sha256.Sum256(append(bytes.Clone(approved), ref...))
	ticket, err := tpm2.VerifySignature{
		KeyHandle: tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: *name},
		Digest:    tpm2.TPM2BDigest{Buffer: hash[:]},
		Signature: signature,
	}.Execute(p.t.link)
	if err != nil {
		return fmt.Errorf("verify policy: %w", as(err, ReasonPolicyFile, tpm2.TPMRCSignature, tpm2.TPMRCScheme))
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: p.s.Handle(), ApprovedPolicy: tpm2.TPM2BDigest{Buffer: approved},
		PolicyRef: tpm2.TPM2BDigest{Buffer: ref}, KeySign: *name, CheckTicket: ticket.Validation,
	}.Execute(p.t.link)
	if err != nil {
		return fmt.Errorf("authorize: %w", as(err, hardware.ReasonPolicy, tpm2.TPMRCValue, tpm2.TPMRCTicket))
	}
	return nil
}
