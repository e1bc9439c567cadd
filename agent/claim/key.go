// Package claim holds the agent's key of this boot and what it claims with it.
// The key is born in locked memory of the agent's process and dies with it.
// agent/run and agent/channel may call it.
package claim

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"

	"golang.org/x/sys/unix"
)

// Key is the agent's Ed25519 key of this boot.
type Key struct {
	page    []byte // one locked page of its own, outside of the Go heap
	private ed25519.PrivateKey
}

// NewKey makes a key in a page that is neither swapped, dumped nor inherited.
func NewKey() (*Key, error) {
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("agent key: map a page: %w", err)
	}
	k := &Key{page: page}
	if err := k.fill(); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

func (k *Key) fill() error {
	if err := unix.Mlock(k.page); err != nil {
		return fmt.Errorf("agent key: lock its page: %w", err)
	}
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_WIPEONFORK} {
		if err := unix.Madvise(k.page, advice); err != nil {
			return fmt.Errorf("agent key: protect its page: %w", err)
		}
	}
	_, heap, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("agent key: %w", err)
	}
	k.private = ed25519.PrivateKey(k.page[:copy(k.page, heap)])
	clear(heap)
	return nil
}

// Public returns the public half.
func (k *Key) Public() ed25519.PublicKey {
	return append(ed25519.PublicKey(nil), k.private[ed25519.SeedSize:]...)
}

// Private returns the key itself; it stays in its locked page.
func (k *Key) Private() ed25519.PrivateKey { return k.private }

// Wipe destroys the key; it must not be used afterwards.
func (k *Key) Wipe() {
	clear(k.page)
	unix.Munmap(k.page)
	k.page, k.private = nil, nil
}

// Harden keeps other processes of this machine from reading or tracing this
// one without CAP_SYS_PTRACE, and the kernel from dumping it.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid dumps: %w", err)
	}
	return nil
}
