package tpmattest

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Key is an object that is loaded or persistent, with its computed name: one that
// the bus delivers proves nothing.
type Key struct {
	Handle tpm2.TPMHandle
	Name   tpm2.TPM2BName
	Public tpm2.TPMTPublic
}

// NewKey computes the name of what is at a handle.
func NewKey(handle tpm2.TPMHandle, public tpm2.TPM2BPublic) (*Key, error) {
	p, err := public.Contents()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, err
	}
	return &Key{handle, *name, *p}, nil
}

// MakePrimary makes a primary key, which the caller flushes.
func MakePrimary(chip transport.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*Key, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(chip)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	k, err := NewKey(r.ObjectHandle, r.OutPublic)
	if err != nil {
		Flush(chip, r.ObjectHandle)
		return nil, err
	}
	return k, nil
}

// Flush frees a transient object or session. An error is no news: with a resource
// manager it goes when the device is closed.
func Flush(chip transport.TPM, h tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(chip)
}

// MaxCertificate caps an endorsement certificate, in bytes.
const MaxCertificate = 4096

// ChooseEK returns the kind of the endorsement key that has a certificate, and the
// certificate; ECC where none has. A kind that is not "" is taken as it is.
func ChooseEK(chip transport.TPM, kind EKKind) (EKKind, []byte, error) {
	kinds := []EKKind{kind}
	if kind == "" {
		kinds = []EKKind{EKECC, EKRSA}
	}
	for _, k := range kinds {
		_, index, err := EKTemplate(k)
		if err != nil {
			return "", nil, err
		}
		cert, err := ReadNV(chip, index, MaxCertificate)
		if err != nil {
			return "", nil, err
		}
		if cert != nil || kind != "" {
			return k, cert, nil
		}
	}
	return EKECC, nil, nil
}

// ReadNV returns what an index holds, nil where there is none or it is not
// readable for everybody.
func ReadNV(chip transport.TPM, index uint32, most int) ([]byte, error) {
	r, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(chip)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: %w", index, err)
	}
	p, err := r.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	size := int(p.DataSize)
	if size > most {
		return nil, fmt.Errorf("NV index %#x: %d bytes are more than %d", index, size, most)
	}
	if !p.Attributes.AuthRead || !p.Attributes.Written {
		return nil, nil
	}
	const chunk = 512 // every chip's MAX_NV_BUFFER_SIZE is at least that
	out := make([]byte, 0, size)
	for len(out) < size {
		h := tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Name: r.NVName, Auth: tpm2.PasswordAuth(nil)}
		d, err := tpm2.NVRead{AuthHandle: h, NVIndex: tpm2.NamedHandle{Handle: h.Handle, Name: h.Name},
			Size: uint16(min(chunk, size-len(out))), Offset: uint16(len(out))}.Execute(chip)
		if err != nil {
			return nil, fmt.Errorf("NV index %#x: %w", index, err)
		}
		if len(d.Data.Buffer) == 0 || len(d.Data.Buffer) > size-len(out) {
			return nil, fmt.Errorf("NV index %#x: %d bytes at %d of %d", index, len(d.Data.Buffer), len(out), size)
		}
		out = append(out, d.Data.Buffer...)
	}
	return out, nil
}
