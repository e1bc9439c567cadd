package claim

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Facts are what the agent knows of its boot.
type Facts struct {
	Session        string // boot session id
	ManifestDigest [32]byte
	RootHash       [32]byte
	Gateway        ed25519.PublicKey // pinned by the signed initrd
}

// New builds and signs a claim for one connection. uptime is the time since the
// kernel started; bind computes the connection's binding from the agent's nonce.
func New(f Facts, key *Key, uptime time.Duration, hello *protocol.Hello, bind func(agentNonce [32]byte) (protocol.Binding, error)) (*protocol.Claim, protocol.Binding, error) {
	if err := hello.Check(); err != nil {
		return nil, protocol.Binding{}, err
	}
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, protocol.Binding{}, fmt.Errorf("claim: nonce: %w", err)
	}
	binding, err := bind(nonce)
	if err != nil {
		return nil, protocol.Binding{}, fmt.Errorf("claim: %w", err)
	}
	c := &protocol.Claim{
		Session:        f.Session,
		ManifestDigest: f.ManifestDigest[:],
		RootHash:       f.RootHash[:],
		UptimeMs:       uptime.Milliseconds(),
		Nonce:          nonce[:],
		PublicKey:      key.Public(),
	}
	epoch := key.Epoch()
	if epoch != nil {
		c.Epoch = epoch.Number
	}
	transcript := protocol.ClaimTranscript(c, f.Gateway, [32]byte(hello.Nonce), binding)
	c.Signature = ed25519.Sign(key.Private(), transcript)
	if epoch != nil {
		proof := epoch.Proof(transcript)
		c.Proof = proof[:]
	}
	return c, binding, nil
}

// Uptime is the time since the kernel started, sleep included.
func Uptime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
