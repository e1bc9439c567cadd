// Package claim holds the agent's key of this boot and what it claims with it.
// The key is born in the memory of the agent's process and dies with it.
// agent/run and agent/channel may call it.
package claim

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Key is the agent's Ed25519 key of this boot.
type Key struct {
	private ed25519.PrivateKey

	mu    sync.Mutex
	epoch *protocol.Epoch
}

// NewKey makes a key. It lies in the Go heap (crypto/ed25519 keeps an expanded
// copy there in any case), so what protects it is Harden, for the whole process.
func NewKey() (*Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("agent key: %w", err)
	}
	return &Key{private: private}, nil
}

// Copy is the key as somebody has it who copied it, and nothing of the epochs.
func (k *Key) Copy() *Key { return &Key{private: k.private} }

// Taken is a key as somebody has it who read the agent's memory: with its epoch.
func Taken(private ed25519.PrivateKey, epoch *protocol.Epoch) *Key {
	return &Key{private: private, epoch: epoch}
}

// Public returns the public half.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// Private returns the key itself.
func (k *Key) Private() ed25519.PrivateKey { return k.private }

// Epoch is that of the newest claim that was granted, nil before the first. It
// ties the next connection to this one and dies with the key.
func (k *Key) Epoch() *protocol.Epoch {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.epoch
}

// Advance takes the epoch of a claim that was granted and wipes the one before.
func (k *Key) Advance(e *protocol.Epoch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epoch.Wipe()
	k.epoch = e
}

// Harden keeps this process's memory out of swap (each page from its first use
// on), out of core dumps, and out of reach of processes without CAP_SYS_PTRACE.
// It is called before the key is made.
func Harden() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid dumps: %w", err)
	}
	return nil
}
