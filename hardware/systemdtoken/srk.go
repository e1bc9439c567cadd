package systemdtoken

import (
	"bytes"
	"encoding/binary"

	"github.com/google/go-tpm/tpm2"
)

// rsrcKey is tpm2-tss's tag of a key in a serialised handle (IESYSC_KEY_RSRC).
const rsrcKey = 1

// srk takes tpm2_srk apart: handle, TPM2B_NAME, tag, TPM2B_PUBLIC, as
// Esys_TR_Serialize of tpm2-tss writes a persistent key. The name is computed.
func (t *Token) srk() (handle uint32, name []byte, err error) {
	b := t.SRK
	if len(b) < 4 {
		return 0, nil, bad("storage key: cut short")
	}
	handle = binary.BigEndian.Uint32(b)
	said, rest, err := sized(b[4:])
	if err != nil {
		return 0, nil, bad("storage key's name: %w", err)
	}
	if len(rest) < 4 || binary.BigEndian.Uint32(rest) != rsrcKey {
		return 0, nil, bad("storage key: not a key")
	}
	area, rest, err := sized(rest[4:])
	if err != nil || len(rest) > 0 {
		return 0, nil, bad("storage key's public area: %d bytes left, %v", len(rest), err)
	}
	name, err = nameOf(area)
	if err != nil {
		return 0, nil, err
	}
	if !bytes.Equal(name, said) {
		return 0, nil, bad("storage key: name and public area differ")
	}
	return handle, name, nil
}

func serialiseSRK(handle uint32, public []byte) ([]byte, error) {
	name, err := nameOf(public)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(nil, handle)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(name))), name...)
	b = binary.BigEndian.AppendUint32(b, rsrcKey)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(public))), public...), nil
}

// nameOf computes the name of a public area. go-tpm may panic on what is none.
func nameOf(area []byte) (name []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			name, err = nil, bad("public area: %v", r)
		}
	}()
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return nil, bad("public area: %w", err)
	}
	n, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, bad("public area: %w", err)
	}
	return n.Buffer, nil
}

// oldParent is the transient primary key of systemd before 254: TCG's template
// without NoDA.
func oldParent(rsa bool) *tpm2.TPMTPublic {
	p := tpm2.ECCSRKTemplate
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	if rsa {
		p = tpm2.RSASRKTemplate
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	p.ObjectAttributes.NoDA = false
	return &p
}
