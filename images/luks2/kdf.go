package luks2

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"math"
	"strings"

	"golang.org/x/crypto/argon2"
)

// KDF is how a keyslot turns a passphrase into the key of its area.
type KDF struct {
	Type       string // pbkdf2 or argon2id
	Iterations int    // pbkdf2 with SHA-256: 1000 and more
	Time       int    // argon2id: passes, 1 and more
	Memory     int    // argon2id: KiB
	Lanes      int    // argon2id: 1 to 4
}

// ForChip is for a passphrase that carries 256 random bits of a chip: nobody can
// guess it, so stretching it buys nothing but boot time (systemd-cryptenroll does
// the same).
func ForChip() KDF { return KDF{Type: "pbkdf2", Iterations: 1000} }

// ForPeople is for what a human types, and fits the smallest Pi: 64 MiB, 4 passes,
// 4 lanes, one for each of its cores.
func ForPeople() KDF { return KDF{Type: "argon2id", Memory: 64 << 10, Time: 4, Lanes: 4} }

// Limits cap what a header may make this machine spend before a passphrase is
// known to be right. A slot made on a large computer may ask for more memory than
// the Pi has.
type Limits struct {
	Memory     int64 // KiB
	Time       int64 // argon2 passes
	Work       int64 // argon2: KiB times passes; 0: no other limit than those two
	Iterations int64 // pbkdf2, of keyslots and digests
}

// DefaultLimits allows argon2 1 GiB.
func DefaultLimits() Limits { return Limits{Memory: 1 << 20, Time: 256, Iterations: 50_000_000} }

// Bounds of the format itself, and what luks.go computes with without a question.
const (
	minSalt       = 8
	maxSalt       = 64
	saltSize      = 32
	maxIterations = math.MaxInt32
)

// hashes that keyslots and digests may use. SHA-256 is what Format writes.
var hashes = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

// check holds the parameters to the bounds of the format; cost is another question.
func (k *kdf) check() error {
	if len(k.Salt) < minSalt || len(k.Salt) > maxSalt {
		return refuse(ReasonMetadata, "salt of %d bytes", len(k.Salt))
	}
	switch k.Type {
	case "pbkdf2":
		if hashes[k.Hash] == nil {
			return refuse(ReasonUnsupported, "pbkdf2 with %.40q", k.Hash)
		}
		if k.Iterations < 1 || k.Iterations > maxIterations {
			return refuse(ReasonMetadata, "pbkdf2 with %d iterations", k.Iterations)
		}
		if k.Time != 0 || k.Memory != 0 || k.CPUs != 0 {
			return refuse(ReasonMetadata, "pbkdf2 with parameters of argon2")
		}
	case "argon2i", "argon2id":
		if k.Time < 1 || k.Time > math.MaxInt32 || k.CPUs < 1 || k.CPUs > 255 || k.Memory < 8*k.CPUs || k.Memory > math.MaxInt32 {
			return refuse(ReasonMetadata, "%s with time %d, memory %d KiB, %d lanes", k.Type, k.Time, k.Memory, k.CPUs)
		}
		if k.Hash != "" || k.Iterations != 0 {
			return refuse(ReasonMetadata, "%s with parameters of pbkdf2", k.Type)
		}
	default:
		return refuse(ReasonUnsupported, "key derivation %.40q", k.Type)
	}
	return nil
}

// affordable refuses parameters over the limits.
func (k *kdf) affordable(l Limits) error {
	switch {
	case k.Memory > l.Memory:
		return refuse(ReasonCost, "%s wants %d KiB of memory, the limit here is %d", k.Type, k.Memory, l.Memory)
	case k.Time > l.Time:
		return refuse(ReasonCost, "%s wants %d passes, the limit here is %d", k.Type, k.Time, l.Time)
	case l.Work > 0 && k.Time > 0 && k.Memory > l.Work/k.Time:
		return refuse(ReasonCost, "%s wants %d passes over %d KiB, the limit here is %d KiB in all", k.Type, k.Time, k.Memory, l.Work)
	case k.Iterations > l.Iterations:
		return refuse(ReasonCost, "%s wants %d iterations, the limit here is %d", k.Type, k.Iterations, l.Iterations)
	}
	return nil
}

// derive returns size bytes. The caller has called check and affordable.
func (k *kdf) derive(passphrase []byte, size int) ([]byte, error) {
	switch k.Type {
	case "pbkdf2":
		return stretch(k.Hash, passphrase, k.Salt, k.Iterations, size)
	case "argon2i":
		return argon2.Key(passphrase, k.Salt, uint32(k.Time), uint32(k.Memory), uint8(k.CPUs), uint32(size)), nil
	default:
		return argon2.IDKey(passphrase, k.Salt, uint32(k.Time), uint32(k.Memory), uint8(k.CPUs), uint32(size)), nil
	}
}

func stretch(hash string, secret, salt []byte, iterations int64, size int) ([]byte, error) {
	key, err := pbkdf2.Key(hashes[hash], string(secret), salt, int(iterations), size)
	if err != nil {
		return nil, &Error{ReasonUnsupported, err}
	}
	return key, nil
}

func equalFold(a, b string) bool { return strings.EqualFold(a, b) }
