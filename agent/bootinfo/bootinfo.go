// Package bootinfo is the note that hpc-init leaves for hpc-agent: which boot
// session this is, which gateway may be spoken to, what was booted. hpc-init
// writes it, the agent reads it, and lab/proxy as an attacker; nobody else may call it.
package bootinfo

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
)

// Path is where the note lies, on a tmpfs, with mode 0600.
const Path = "/run/portcullis/boot.json"

// maxSize bounds what Parse reads, in bytes.
const maxSize = 4096

// Info is the note. A value that came out of Parse or Read is valid.
type Info struct {
	Session        string `json:"session"`         // boot session: 26 characters of a-z2-7
	Gateway        string `json:"gateway"`         // IPv4 address and port of the attestation service
	GatewayKey     string `json:"gateway_key"`     // Ed25519 public key of the gateway, standard base64
	ManifestDigest string `json:"manifest_digest"` // SHA-256 of the manifest's payload, hex
	RootHash       string `json:"root_hash"`       // dm-verity root hash, hex
	RootDevice     string `json:"root_device"`     // the verity device, for instance /dev/dm-0
	LoopDevice     string `json:"loop_device"`     // the device below it, for instance /dev/loop0
}

var (
	session    = regexp.MustCompile(`^[a-z2-7]{26}$`)
	rootDevice = regexp.MustCompile(`^/dev/dm-[0-9]{1,6}$`)
	loopDevice = regexp.MustCompile(`^/dev/loop[0-9]{1,6}$`)
)

// ValidSession tells whether s has the form of a boot session's id: 128 random
// bits in lower-case base32 without padding (RFC 4648 section 6).
func ValidSession(s string) bool { return session.MatchString(s) }

// Key returns GatewayKey decoded. It is nil for an Info that is not valid.
func (i Info) Key() ed25519.PublicKey {
	b, err := base64.StdEncoding.Strict().DecodeString(i.GatewayKey)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil
	}
	return b
}

// Validate checks every field and names the first that is wrong.
func (i Info) Validate() error {
	gateway, err := netip.ParseAddrPort(i.Gateway)
	switch {
	case !ValidSession(i.Session):
		return errors.New("boot note: session is not 26 characters of a-z2-7")
	case err != nil || !gateway.Addr().Is4() || gateway.Addr().IsUnspecified() || gateway.Port() == 0 || gateway.String() != i.Gateway:
		return fmt.Errorf("boot note: gateway %.64q is not an IPv4 address with a port", i.Gateway)
	case i.Key() == nil:
		return errors.New("boot note: gateway_key is not an Ed25519 public key in standard base64")
	case !digest(i.ManifestDigest):
		return errors.New("boot note: manifest_digest is not a SHA-256 in lower-case hex")
	case !digest(i.RootHash):
		return errors.New("boot note: root_hash is not a SHA-256 in lower-case hex")
	case !rootDevice.MatchString(i.RootDevice):
		return fmt.Errorf("boot note: root_device %.64q is not a device-mapper device", i.RootDevice)
	case !loopDevice.MatchString(i.LoopDevice):
		return fmt.Errorf("boot note: loop_device %.64q is not a loop device", i.LoopDevice)
	}
	return nil
}

func digest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && hex.EncodeToString(b) == s
}

// Encode validates i and returns it as one line of JSON.
func (i Info) Encode() ([]byte, error) {
	if err := i.Validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(i)
	if err != nil {
		return nil, fmt.Errorf("boot note: %w", err)
	}
	return append(b, '\n'), nil
}

// Parse reads what Encode wrote, and nothing else: no other spelling, order,
// unknown or doubled field.
func Parse(data []byte) (Info, error) {
	if len(data) > maxSize {
		return Info{}, fmt.Errorf("boot note: %d bytes, at most %d are read", len(data), maxSize)
	}
	var i Info
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&i); err != nil {
		return Info{}, fmt.Errorf("boot note: %w", err)
	}
	again, err := i.Encode()
	if err != nil {
		return Info{}, err
	}
	if !bytes.Equal(again, data) {
		return Info{}, errors.New("boot note: not as hpc-init writes it")
	}
	return i, nil
}

// Read reads the note at path. It refuses one that others could have written or read.
func Read(path string) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, fmt.Errorf("boot note: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, fmt.Errorf("boot note: %w", err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm() != 0o600 {
		return Info{}, fmt.Errorf("boot note: %s has mode %v instead of 0600", path, st.Mode())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Info{}, fmt.Errorf("boot note: %w", err)
	}
	return Parse(b)
}

// Write writes the note to path, which must not exist, with mode 0600.
func Write(path string, i Info) error {
	b, err := i.Encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("boot note: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("boot note: %w", err)
	}
	return nil
}
