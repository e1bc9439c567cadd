// Package escrow keeps a Pi's recovery key for its operator: encrypted to the
// operator's age X25519 recipient, in a file on the card's configuration partition.
// Who has the card has nothing; who has the operator's identity as well opens the
// volume without the chip. pi-init encrypts, the portcullis program decrypts.
package escrow

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"portcullis/images/card"
	"portcullis/images/luks2"
)

// Reason classifies a refusal; the same word in logs and documents.
type Reason string

// Reasons.
const (
	ReasonRecipient  Reason = "escrow-recipient"   // not one X25519 recipient, age1…
	ReasonPrivateKey Reason = "escrow-private-key" // an identity where a recipient belongs: it is no secret any more
	ReasonIdentity   Reason = "escrow-identity"    // not an age identity file
	ReasonNone       Reason = "escrow-none"        // the card holds no escrow yet
	ReasonFormat     Reason = "escrow-format"      // not an escrow file, or a damaged one
	ReasonForeign    Reason = "escrow-foreign"     // encrypted to another recipient
)

// Error is a refusal with its reason.
type Error struct {
	Reason Reason
	Err    error
}

func (e *Error) Error() string { return string(e.Reason) + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason in err's chain, "" where there is none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func refuse(r Reason, format string, args ...any) error {
	return &Error{r, fmt.Errorf(format, args...)}
}

// Recipient is the operator's public key.
type Recipient struct{ key *age.X25519Recipient }

// ParseRecipient reads age1… as age-keygen prints it, nothing around it. Points that
// would give everybody the same secret are refused here, not at enrolment.
func ParseRecipient(s string) (*Recipient, error) {
	if strings.HasPrefix(strings.ToUpper(strings.TrimSpace(s)), "AGE-SECRET-KEY-") {
		return nil, refuse(ReasonPrivateKey, "this is the private key: the card needs the line that begins with age1; make a new pair")
	}
	if len(s) != recipientSize || strings.ToLower(s) != s {
		return nil, refuse(ReasonRecipient, "%.80q is not an age recipient (age1 and 58 characters more)", s)
	}
	key, err := age.ParseX25519Recipient(s)
	if err != nil {
		return nil, &Error{ReasonRecipient, err}
	}
	if _, err := key.Wrap(make([]byte, 16)); err != nil {
		return nil, &Error{ReasonRecipient, err}
	}
	return &Recipient{key}, nil
}

// String is the recipient as it was given.
func (r *Recipient) String() string { return r.key.String() }

const recipientSize = 62

// Record is what an escrow file holds.
type Record struct {
	Volume string // UUID of the LUKS2 volume
	Key    *luks2.RecoveryKey
}

// The plaintext: three lines, so that an operator who decrypts with the age program
// can read it.
const (
	lineSchema = "portcullis/escrow/v1"
	lineVolume = "volume "
	lineKey    = "recovery key "
	maxPlain   = 512
	uuidSize   = 36
)

// Encrypt returns the armored file, at most card.EscrowSize bytes.
func Encrypt(to *Recipient, rec Record) ([]byte, error) {
	if len(rec.Volume) != uuidSize || strings.ContainsAny(rec.Volume, "\r\n") || rec.Key == nil {
		return nil, refuse(ReasonFormat, "volume %.40q is not a UUID, or there is no key", rec.Volume)
	}
	plain := make([]byte, 0, maxPlain) // never grown: a copy would stay behind
	defer clear(plain[:maxPlain])
	plain = append(plain, lineSchema+"\n"+lineVolume...)
	plain = append(plain, rec.Volume...)
	plain = append(plain, "\n"+lineKey...)
	plain = append(plain, rec.Key.Passphrase()...)
	plain = append(plain, '\n')
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, to.key)
	if err != nil {
		return nil, &Error{ReasonRecipient, err}
	}
	for _, step := range []func() error{
		func() error { _, err := w.Write(plain); return err },
		w.Close,
		a.Close,
	} {
		if err := step(); err != nil {
			return nil, &Error{ReasonFormat, err}
		}
	}
	if out.Len() > card.EscrowSize {
		return nil, refuse(ReasonFormat, "%d bytes are more than %d", out.Len(), card.EscrowSize)
	}
	return out.Bytes(), nil
}

// Decrypt opens an escrow file, padded with line feeds or not. The caller wipes the
// key.
func Decrypt(id *Identity, file []byte) (*Record, error) {
	if len(file) > card.EscrowSize {
		return nil, refuse(ReasonFormat, "%d bytes are more than %d", len(file), card.EscrowSize)
	}
	file = bytes.TrimRight(file, "\n")
	if len(file) == 0 {
		return nil, refuse(ReasonNone, "no recovery key was escrowed")
	}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(file)), id.key)
	var foreign *age.NoIdentityMatchError
	if errors.As(err, &foreign) {
		return nil, refuse(ReasonForeign, "it is encrypted to another recipient than %s", id.key.Recipient())
	}
	if err != nil {
		return nil, &Error{ReasonFormat, err}
	}
	plain := make([]byte, maxPlain+1)
	defer clear(plain)
	n, err := io.ReadFull(r, plain)
	if err != io.ErrUnexpectedEOF || n == 0 {
		return nil, refuse(ReasonFormat, "the content is empty, damaged or longer than %d bytes", maxPlain)
	}
	return parseRecord(plain[:n])
}

func parseRecord(plain []byte) (*Record, error) {
	rest, ok := bytes.CutPrefix(plain, []byte(lineSchema+"\n"+lineVolume))
	if !ok || len(rest) < uuidSize {
		return nil, refuse(ReasonFormat, "the content is not %s", lineSchema)
	}
	volume, rest := string(rest[:uuidSize]), rest[uuidSize:]
	rest, ok = bytes.CutPrefix(rest, []byte("\n"+lineKey))
	if !ok || len(rest) != luks2.RecoveryKeySize+1 || rest[luks2.RecoveryKeySize] != '\n' || strings.ContainsAny(volume, "\r\n") {
		return nil, refuse(ReasonFormat, "the content is not %s", lineSchema)
	}
	key, err := luks2.ParseRecoveryKey(rest[:luks2.RecoveryKeySize])
	if err != nil {
		return nil, &Error{ReasonFormat, err}
	}
	return &Record{Volume: volume, Key: key}, nil
}
