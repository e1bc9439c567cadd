package server

import (
	"errors"
	"io/fs"
	"testing"

	"portcullis/attestserver/protocol"
)

// counted are references that count how often they are read.
type counted struct {
	data  map[string]string
	reads int
}

func (c *counted) Get(kind, key string) ([]byte, error) {
	c.reads++
	if d, ok := c.data[kind+"/"+key]; ok {
		return []byte(d), nil
	}
	return nil, fs.ErrNotExist
}
func (c *counted) Open(string, string) (protocol.Reference, error) { return nil, fs.ErrNotExist }
func (c *counted) Put(kind, key string, data []byte) error {
	c.data[kind+"/"+key] = string(data)
	return nil
}
func (c *counted) Write(kind, key string, fill func(protocol.Draft) error) error {
	c.data[kind+"/"+key] = "written"
	return fill(nil)
}
func (c *counted) PutNew(kind, key string, data []byte) error { return c.Put(kind, key, data) }

// A judgement reads each reference once, sees what it writes itself, and the next
// judgement sees what has changed since.
func TestOneJudgementReadsAReferenceOnce(t *testing.T) {
	refs := &counted{data: map[string]string{"a/1": "x"}}
	s := newSeen(refs)
	read := func(s *seen, kind, key, want string, reads int) {
		t.Helper()
		b, err := s.Get(kind, key)
		if string(b) != want || (want == "") != errors.Is(err, fs.ErrNotExist) || refs.reads != reads {
			t.Errorf("%s/%s: %q, %v after %d reads, want %q after %d", kind, key, b, err, refs.reads, want, reads)
		}
	}
	for range 2 {
		read(s, "a", "1", "x", 1)
	}
	for range 2 {
		read(s, "a", "2", "", 2)
	}
	if err := errors.Join(s.Put("a", "1", []byte("y")), s.PutNew("a", "2", []byte("z"))); err != nil {
		t.Fatal(err)
	}
	read(s, "a", "1", "y", 3)
	if err := s.Write("a", "1", func(protocol.Draft) error { return nil }); err != nil {
		t.Fatal(err)
	}
	read(s, "a", "1", "written", 4)
	read(s, "a", "2", "z", 5)
	refs.data["a/1"] = "w" // by another judgement
	read(s, "a", "1", "written", 5)
	read(newSeen(refs), "a", "1", "w", 6)
}
