package tpm2

import (
	"errors"
	"fmt"

	"portcullis/hardware/tpmattest"

	"github.com/google/go-tpm/tpm2"
)

// key is an object that is loaded or persistent, with its computed name.
type key = tpmattest.Key

// srkTemplate is the storage key that systemd makes: TCG's ECC template with an
// empty unique field, which gives another key than the field of zeros.
func srkTemplate() tpm2.TPMTPublic {
	p := tpm2.ECCSRKTemplate
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return p
}

// readKey returns what is at a handle, nil where nothing is. The name is computed
// here: one that the bus delivers proves nothing.
func (t *TPM) readKey(handle uint32) (*key, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCValue) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key %#x: %w", handle, err)
	}
	return tpmattest.NewKey(tpm2.TPMHandle(handle), r.OutPublic)
}

// storageKey returns the storage key; where there is none and make is set it is
// made and kept.
func (t *TPM) storageKey(make bool) (*key, error) {
	k, err := t.readKey(t.cfg.SRK)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return t.makePrimary(tpm2.TPMRHOwner, srkTemplate(), t.cfg.SRK, make)
	}
	if !isStorageKey(&k.Public) {
		return nil, refuse(ReasonHandleForeign, "%#x holds something that is not a storage key", t.cfg.SRK)
	}
	return k, nil
}

// isStorageKey accepts what systemd accepts as parent: a restricted decryption key
// that never leaves this chip and wants no password that counts.
func isStorageKey(p *tpm2.TPMTPublic) bool {
	a := p.ObjectAttributes
	return (p.Type == tpm2.TPMAlgECC || p.Type == tpm2.TPMAlgRSA) && p.NameAlg == tpm2.TPMAlgSHA256 &&
		a.Restricted && a.Decrypt && !a.SignEncrypt && a.FixedTPM && a.FixedParent && a.SensitiveDataOrigin && a.UserWithAuth
}

// makePrimary makes a primary key. With keep it is made persistent at handle and
// the transient one is flushed; otherwise the caller flushes.
func (t *TPM) makePrimary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, handle uint32, keep bool) (*key, error) {
	k, err := tpmattest.MakePrimary(t.link, hierarchy, template)
	if err != nil || !keep {
		return k, err
	}
	defer t.flush(k.Handle)
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: tpm2.NamedHandle{Handle: k.Handle, Name: k.Name},
		PersistentHandle: tpm2.TPMHandle(handle)}.Execute(t.link)
	if err != nil {
		return nil, fmt.Errorf("keep key at %#x: %w", handle, err)
	}
	kept := *k
	kept.Handle = tpm2.TPMHandle(handle)
	return &kept, nil
}

// release flushes a key that is not persistent.
func (t *TPM) release(k *key) {
	if k != nil && uint32(k.Handle)>>24 == 0x80 {
		t.flush(k.Handle)
	}
}

// flush frees a transient object or session. An error is no news: with a resource
// manager it goes when the device is closed.
func (t *TPM) flush(h tpm2.TPMHandle) {
	tpmattest.Flush(t.link, h)
}
