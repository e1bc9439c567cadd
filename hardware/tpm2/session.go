package tpm2

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// passwordSession is a salted policy session for an object with a password, whose
// answer comes encrypted. go-tpm v0.9.8's own cuts a password at its first zero
// octet instead of only taking zeros off the end (google/go-tpm#446), so that one
// random password in eight is refused and counted as a wrong attempt. Equations
// are those of Part 1, 19.6.5 and 21.
type passwordSession struct {
	handle                tpm2.TPMHandle
	nonceTPM, nonceCaller []byte
	key                   []byte // sessionKey, then authValue
}

// attributes: the session goes on after the command, the chip encrypts the answer.
var passwordAttributes = tpm2.TPMASession{ContinueSession: true, Encrypt: true}

// attribute bits as they stand in the HMAC.
const (
	bitContinue = 1 << 0
	bitEncrypt  = 1 << 6
)

func startPasswordSession(t transport.TPM, salt *key, password []byte) (*passwordSession, error) {
	to, err := tpm2.ImportEncapsulationKey(&salt.Public)
	if err != nil {
		return nil, err
	}
	secret, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, to)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	s := &passwordSession{nonceCaller: make([]byte, nonceSize)}
	if err := s.NewNonceCaller(); err != nil {
		return nil, err
	}
	r, err := tpm2.StartAuthSession{
		TPMKey: salt.Handle, Bind: tpm2.TPMRHNull, NonceCaller: tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted}, SessionType: tpm2.TPMSEPolicy, AuthHash: tpm2.TPMAlgSHA256,
		Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
			Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)},
	}.Execute(t)
	if err != nil {
		return nil, err
	}
	s.handle, s.nonceTPM = tpm2.TPMHandle(r.SessionHandle.HandleValue()), r.NonceTPM.Buffer
	s.key = append(tpm2.KDFa(crypto.SHA256, secret, "ATH", s.nonceTPM, s.nonceCaller, 8*sha256.Size), bytes.TrimRight(password, "\x00")...)
	return s, nil
}

// Init does nothing: the session is there.
func (s *passwordSession) Init(transport.TPM) error { return nil }

// CleanupFailure does nothing: whoever started the session flushes it.
func (s *passwordSession) CleanupFailure(transport.TPM) error { return nil }

// NonceTPM is the chip's last nonce.
func (s *passwordSession) NonceTPM() tpm2.TPM2BNonce { return tpm2.TPM2BNonce{Buffer: s.nonceTPM} }

// NewNonceCaller makes a new nonce of ours.
func (s *passwordSession) NewNonceCaller() error {
	_, err := rand.Read(s.nonceCaller)
	return err
}

func (s *passwordSession) mac(hash [sha256.Size]byte, newer, older, more []byte, attributes byte) []byte {
	m := hmac.New(sha256.New, s.key)
	for _, b := range [][]byte{hash[:], newer, older, more, {attributes}} {
		m.Write(b)
	}
	return m.Sum(nil)
}

// Authorize proves to the chip that the password and the salt are known.
func (s *passwordSession) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	b := binary.BigEndian.AppendUint32(nil, uint32(cc))
	for _, n := range names {
		b = append(b, n.Buffer...)
	}
	mac := s.mac(sha256.Sum256(append(b, parms...)), s.nonceCaller, s.nonceTPM, addNonces, bitContinue|bitEncrypt)
	return &tpm2.TPMSAuthCommand{Handle: s.handle, Nonce: tpm2.TPM2BNonce{Buffer: s.nonceCaller}, Attributes: passwordAttributes,
		Authorization: tpm2.TPM2BData{Buffer: mac}}, nil
}

// Validate checks that the chip answered, and nobody in between.
func (s *passwordSession) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	s.nonceTPM = auth.Nonce.Buffer
	if auth.Attributes != passwordAttributes {
		return errors.New("the answer's session has other attributes")
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(rc))
	b = append(binary.BigEndian.AppendUint32(b, uint32(cc)), parms...)
	if !hmac.Equal(s.mac(sha256.Sum256(b), s.nonceTPM, s.nonceCaller, nil, bitContinue|bitEncrypt), auth.Authorization.Buffer) {
		return errors.New("the answer's HMAC is wrong")
	}
	return nil
}

// IsEncryption says that answers are encrypted.
func (s *passwordSession) IsEncryption() bool { return true }

// IsDecryption says that commands are not.
func (s *passwordSession) IsDecryption() bool { return false }

// Encrypt does nothing to a command.
func (s *passwordSession) Encrypt([]byte) error { return nil }

// Decrypt decrypts the first parameter of an answer.
func (s *passwordSession) Decrypt(parameter []byte) error {
	k := tpm2.KDFa(crypto.SHA256, s.key, "CFB", s.nonceTPM, s.nonceCaller, 8*(16+aes.BlockSize))
	block, err := aes.NewCipher(k[:16])
	if err != nil {
		return err
	}
	//lint:ignore SA1019 CFB is what a TPM speaks; the session's HMAC authenticates it
	cipher.NewCFBDecrypter(block, k[16:]).XORKeyStream(parameter, parameter)
	return nil
}

// Handle is the session's handle.
func (s *passwordSession) Handle() tpm2.TPMHandle { return s.handle }
