package server

import "portcullis/attestserver/protocol"

// seen is the references as one judgement sees them: several ops look at the same
// one, and it is read once. One goroutine owns it.
type seen struct {
	References
	got map[[2]string]gotten
}

type gotten struct {
	data []byte
	err  error
}

func newSeen(refs References) *seen { return &seen{refs, make(map[[2]string]gotten)} }

// Get returns bytes that nobody may change.
func (s *seen) Get(kind, key string) ([]byte, error) {
	name := [2]string{kind, key}
	g, ok := s.got[name]
	if !ok {
		g.data, g.err = s.References.Get(kind, key)
		s.got[name] = g
	}
	return g.data, g.err
}

func (s *seen) Put(kind, key string, data []byte) error {
	delete(s.got, [2]string{kind, key})
	return s.References.Put(kind, key, data)
}

func (s *seen) Write(kind, key string, fill func(protocol.Draft) error) error {
	delete(s.got, [2]string{kind, key})
	return s.References.Write(kind, key, fill)
}

func (s *seen) PutNew(kind, key string, data []byte) error {
	delete(s.got, [2]string{kind, key})
	return s.References.PutNew(kind, key, data)
}
