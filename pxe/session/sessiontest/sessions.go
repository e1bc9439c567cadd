// Package sessiontest is a session for the tests of the transports.
package sessiontest

import (
	"sync"

	"portcullis/pxe/artefact"
	"portcullis/pxe/session"
)

// Sessions is one live session for the tests of the transports. It remembers
// what it was told.
type Sessions struct {
	mu     sync.Mutex
	Live   session.Session
	Image  *artefact.Image
	closed string
	sent   int64
	voided string
	limit  int64
	why    string
}

// CloseAfter closes the session once so many bytes were sent.
func (s *Sessions) CloseAfter(bytes int64, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit, s.why = bytes, reason
}

// Told returns the number of bytes that were reported and the reason for which
// the session was made void.
func (s *Sessions) Told() (sent int64, voided string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.voided
}

// Allow is what a transport asks before it sends.
func (s *Sessions) Allow(id, name string) (*artefact.Image, session.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case id != s.Live.ID:
		return nil, session.Session{}, &session.Refusal{Reason: session.ReasonUnknown}
	case s.closed != "":
		return nil, session.Session{}, &session.Refusal{Reason: s.closed}
	case !s.Live.Firmware.Offers(name):
		return nil, session.Session{}, &session.Refusal{Reason: session.ReasonNotOffered}
	}
	return s.Image, s.Live, nil
}

// Sent counts.
func (s *Sessions) Sent(id, _, _ string, _, length int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent += length
	if s.why != "" && s.sent >= s.limit {
		s.closed = s.why
	}
	if s.closed != "" {
		return &session.Refusal{Reason: s.closed}
	}
	return nil
}

// Void closes the session for ever.
func (s *Sessions) Void(_, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.voided, s.closed = reason, session.ReasonVoid
}
