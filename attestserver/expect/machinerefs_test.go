package expect_test

import (
	"bytes"
	"io/fs"

	"portcullis/attestserver/protocol"
)

// memory keeps references in a map.
type memory map[string][]byte

func (r memory) Get(kind, key string) ([]byte, error) {
	if b, ok := r[kind+"/"+key]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (r memory) Open(kind, key string) (protocol.Reference, error) {
	b, err := r.Get(kind, key)
	return open{bytes.NewReader(b)}, err
}

func (r memory) Put(kind, key string, data []byte) error {
	r[kind+"/"+key] = bytes.Clone(data)
	return nil
}

func (r memory) Write(kind, key string, fill func(protocol.Draft) error) error {
	d := &draft{}
	if err := fill(d); err != nil {
		return err
	}
	return r.Put(kind, key, d.b)
}

// draft is a file in memory.
type draft struct{ b []byte }

func (d *draft) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(d.b) {
		d.b = append(d.b, make([]byte, end-len(d.b))...)
	}
	return copy(d.b[off:], p), nil
}

func (d *draft) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d.b).ReadAt(p, off) }

type open struct{ *bytes.Reader }

func (open) Close() error { return nil }
