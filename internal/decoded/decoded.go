// Package decoded remembers what bytes were decoded to. What is written once in months
// and looked at several times an answer (a machine's fingerprint, a chip's enrolment) is
// read each time, and decoded when its bytes are others. It touches nothing.
package decoded

import (
	"crypto/sha256"
	"sync"
)

// Memo is decoded values by the digest of their bytes. Its methods may be called
// concurrently; the zero value is ready.
type Memo[T any] struct {
	mu   sync.Mutex
	of   map[[sha256.Size]byte]*T
	size int
}

// Max bounds what a Memo stands for, in bytes of what was decoded: it forgets all
// that it has when more comes.
const Max = 2 << 20

// Decode returns what decode makes of b, or has made of the same bytes before. An error
// is not remembered. The value is everybody's: nobody may change it.
func (m *Memo[T]) Decode(b []byte, decode func([]byte) (*T, error)) (*T, error) {
	sum := sha256.Sum256(b)
	m.mu.Lock()
	v := m.of[sum]
	m.mu.Unlock()
	if v != nil {
		return v, nil
	}
	v, err := decode(b)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of == nil || m.size+len(b) > Max {
		m.of, m.size = make(map[[sha256.Size]byte]*T), 0
	}
	if _, ok := m.of[sum]; !ok {
		m.of[sum] = v
		m.size += len(b)
	}
	return v, nil
}
