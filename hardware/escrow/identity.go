package escrow

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

// Identity is the operator's private key.
type Identity struct{ key *age.X25519Identity }

// maxIdentity caps an identity file; age-keygen writes less than 200 bytes.
const maxIdentity = 8 << 10

// ParseIdentity reads an identity file as age-keygen writes it: comments and exactly
// one X25519 private key.
func ParseIdentity(r io.Reader) (*Identity, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxIdentity+1))
	defer clear(b)
	if err != nil {
		return nil, &Error{ReasonIdentity, err}
	}
	if len(b) > maxIdentity {
		return nil, refuse(ReasonIdentity, "more than %d bytes", maxIdentity)
	}
	var found *age.X25519Identity
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if found != nil {
			return nil, refuse(ReasonIdentity, "more than one private key")
		}
		// The error of age is not wrapped: it may quote the line, which is a secret.
		if found, err = age.ParseX25519Identity(line); err != nil {
			return nil, refuse(ReasonIdentity, "a line is not an X25519 private key of age (AGE-SECRET-KEY-1…)")
		}
	}
	if found == nil {
		return nil, refuse(ReasonIdentity, "no private key")
	}
	return &Identity{found}, nil
}

// LoadIdentity reads an identity file.
func LoadIdentity(path string) (*Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Error{ReasonIdentity, err}
	}
	defer f.Close()
	return ParseIdentity(f)
}

// Recipient is the public half.
func (id *Identity) Recipient() *Recipient { return &Recipient{id.key.Recipient()} }

// Format keeps the private key out of everything that fmt makes.
func (Identity) Format(f fmt.State, _ rune) { io.WriteString(f, "[redacted]") }

// Generate writes a new identity to a file that must not exist, mode 0600, and
// returns its public half. The age programs read the file as well.
func Generate(path string) (*Recipient, error) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "# public key: %s\n%s\n", key.Recipient(), key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
		return nil, err
	}
	return &Recipient{key.Recipient()}, nil
}
