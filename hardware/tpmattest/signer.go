package tpmattest

import (
	"crypto/ecdsa"
	"sync"
)

// signer is an attestation key as quotes need it.
type signer struct {
	public *ecdsa.PublicKey
	name   []byte // qualified
}

// maxSigners is how many keys are remembered: one a PC of the largest rack.
const maxSigners = 4096

// signers are keys that were parsed and found to be of our template, by their bytes.
var signers = struct {
	sync.RWMutex
	of map[string]*signer
}{of: make(map[string]*signer)}

// signerOf parses an attestation key (TPMT_PUBLIC), or remembers it.
func signerOf(ak []byte) (*signer, error) {
	signers.RLock()
	s := signers.of[string(ak)]
	signers.RUnlock()
	if s != nil {
		return s, nil
	}
	p, err := ParseAK(ak)
	if err != nil {
		return nil, err
	}
	s = new(signer)
	if s.public, err = PublicECDSA(p); err != nil {
		return nil, err
	}
	if s.name, err = QualifiedName(p); err != nil {
		return nil, err
	}
	signers.Lock()
	defer signers.Unlock()
	if len(signers.of) >= maxSigners {
		clear(signers.of)
	}
	signers.of[string(ak)] = s
	return s, nil
}
