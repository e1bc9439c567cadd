package witness

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// algorithm is the type of a timestamped Ed25519 cosignature in key ids and keys.
const algorithm = 4

// Key is a witness's name and public key. It checks cosignatures as a note.Verifier.
type Key struct {
	name   string
	hash   uint32
	public ed25519.PublicKey
}

// NewKey makes the key of the witness with this name: no space, no plus.
func NewKey(name string, public ed25519.PublicKey) (*Key, error) {
	if !validName(name) || len(public) != ed25519.PublicKeySize {
		return nil, refuse(ReasonKey, "name %.80q with a key of %d bytes", name, len(public))
	}
	return &Key{name, keyHash(name, public), public}, nil
}

// ParseKey reads a key as String writes it.
func ParseKey(vkey string) (*Key, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, material, ok := strings.Cut(rest, "+")
	b, err := base64.StdEncoding.Strict().DecodeString(material)
	if !ok || err != nil || len(b) != 1+ed25519.PublicKeySize || b[0] != algorithm {
		return nil, refuse(ReasonKey, "%.120q is not name+hash+key with the type of a cosigner", vkey)
	}
	k, err := NewKey(name, b[1:])
	if err != nil {
		return nil, err
	}
	if k.String() != vkey || hash != fmt.Sprintf("%08x", k.hash) {
		return nil, refuse(ReasonKey, "%.120q: the hash is not that of name and key", vkey)
	}
	return k, nil
}

// String is the key for configurations (C2SP signed-note, "vkey").
func (k *Key) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.hash, base64.StdEncoding.EncodeToString(append([]byte{algorithm}, k.public...)))
}

func validName(name string) bool {
	return name != "" && len(name) <= 200 && !strings.ContainsFunc(name, func(r rune) bool { return r <= 0x20 || r >= 0x7f || r == '+' })
}

func keyHash(name string, public ed25519.PublicKey) uint32 {
	h := sha256.New()
	h.Write([]byte(name + "\n"))
	h.Write([]byte{algorithm})
	h.Write(public)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// Name is the witness's name.
func (k *Key) Name() string { return k.name }

// KeyHash is the key's id in signatures.
func (k *Key) KeyHash() uint32 { return k.hash }

// Material is the public key itself: two names with the same are one witness.
func (k *Key) Material() string { return string(k.public) }

// Verify tells whether sig is a cosignature of k over the note text msg.
func (k *Key) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	return at <= math.MaxInt64 && ed25519.Verify(k.public, cosigned(msg, at), sig[8:])
}

// cosigned is what a witness signs (C2SP tlog-cosignature).
func cosigned(msg []byte, at uint64) []byte {
	return append([]byte("cosignature/v1\ntime "+strconv.FormatUint(at, 10)+"\n"), msg...)
}

// signer makes cosignatures.
type signer struct {
	*Key
	private ed25519.PrivateKey
	now     func() time.Time
}

func (s *signer) Sign(msg []byte) ([]byte, error) {
	at := uint64(max(s.now().Unix(), 1))
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(s.private, cosigned(msg, at))...), nil
}

var (
	_ note.Verifier = (*Key)(nil)
	_ note.Signer   = (*signer)(nil)
)

// Cosigners returns the names of those of keys whose cosignature is on a
// checkpoint that log has signed, each once. A wrong signature of one of them
// refuses the whole.
func Cosigners(checkpoint []byte, log note.Verifier, keys []*Key) ([]string, error) {
	verifiers := []note.Verifier{log}
	for _, k := range keys {
		verifiers = append(verifiers, k)
	}
	n, err := note.Open(checkpoint, note.VerifierList(verifiers...))
	if err != nil {
		return nil, refuse(ReasonSignature, "%v", err)
	}
	var names []string
	signed := false
	for _, s := range n.Sigs {
		if s.Name == log.Name() && s.Hash == log.KeyHash() {
			signed = true
			continue
		}
		names = append(names, s.Name)
	}
	if !signed {
		return nil, refuse(ReasonSignature, "not signed by the log")
	}
	return names, nil
}
