package tpm2

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// key is an object that is loaded or persistent, with its computed name.
type key struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

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
	return newKey(tpm2.TPMHandle(handle), r.OutPublic)
}

func newKey(handle tpm2.TPMHandle, public tpm2.TPM2BPublic) (*key, error) {
	p, err := public.Contents()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, err
	}
	return &key{handle, *name, *p}, nil
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
	if !isStorageKey(&k.public) {
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
	r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(t.link)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	k, err := newKey(r.ObjectHandle, r.OutPublic)
	if err != nil || !keep {
		return k, err
	}
	defer t.flush(k.handle)
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: tpm2.NamedHandle{Handle: k.handle, Name: k.name},
		PersistentHandle: tpm2.TPMHandle(handle)}.Execute(t.link)
	if err != nil {
		return nil, fmt.Errorf("keep key at %#x: %w", handle, err)
	}
	kept := *k
	kept.handle = tpm2.TPMHandle(handle)
	return &kept, nil
}

// release flushes a key that is not persistent.
func (t *TPM) release(k *key) {
	if k != nil && uint32(k.handle)>>24 == 0x80 {
		t.flush(k.handle)
	}
}

// flush frees a transient object or session. An error is no news: with a resource
// manager it goes when the device is closed.
func (t *TPM) flush(h tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(t.link)
}

// sameTemplate compares two publics without their unique fields.
func sameTemplate(a, b tpm2.TPMTPublic) bool {
	if a.Type != b.Type {
		return false
	}
	switch a.Type {
	case tpm2.TPMAlgECC:
		empty := tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
		a.Unique, b.Unique = empty, empty
	case tpm2.TPMAlgRSA:
		empty := tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
		a.Unique, b.Unique = empty, empty
	default:
		return false
	}
	return bytes.Equal(tpm2.Marshal(a), tpm2.Marshal(b))
}
