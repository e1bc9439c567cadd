package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Describe reads r to its end and returns its size, digest and chunk digests
// under the given artefact name.
func Describe(name string, r io.Reader) (Artefact, error) {
	a := Artefact{Name: name}
	err := eachChunk(r, func(_ int, chunk []byte, sum string) error {
		a.Size += int64(len(chunk))
		a.Chunks = append(a.Chunks, sum)
		return nil
	}, &a.SHA256)
	if err != nil {
		return Artefact{}, fmt.Errorf("describe %s: %w", name, err)
	}
	return a, nil
}

// CheckArtefact reads r to its end and compares it with a. An Error with
// ReasonArtefact names the first chunk that differs; any other error is of r.
func CheckArtefact(a Artefact, r io.Reader) error {
	var whole string
	var size int64
	// One byte more than the artefact is enough to see that r is too long.
	err := eachChunk(io.LimitReader(r, a.Size+1), func(i int, chunk []byte, _ string) error {
		size += int64(len(chunk))
		return a.CheckChunk(i, chunk)
	}, &whole)
	var refused *Error
	switch {
	case errors.As(err, &refused):
		return err
	case err != nil:
		return fmt.Errorf("check %s: %w", a.Name, err)
	case size != a.Size:
		return refuse(ReasonArtefact, "%s: %d bytes long, the manifest says %d", a.Name, size, a.Size)
	case whole != a.SHA256:
		return refuse(ReasonArtefact, "%s: every chunk agrees but the whole digest does not: the manifest contradicts itself", a.Name)
	}
	return nil
}

// ChunkRange returns the offset and the length in bytes of chunk i; the length
// is 0 where a has no such chunk.
func (a Artefact) ChunkRange(i int) (offset, length int64) {
	if i < 0 || i >= len(a.Chunks) {
		return 0, 0
	}
	offset = int64(i) * ChunkSize
	return offset, min(ChunkSize, a.Size-offset)
}

// CheckChunk compares data with chunk i of a and returns an Error with
// ReasonArtefact where they differ in length or digest.
func (a Artefact) CheckChunk(i int, data []byte) error {
	offset, length := a.ChunkRange(i)
	if length == 0 {
		return refuse(ReasonArtefact, "%s: there is no chunk %d, the manifest has %d", a.Name, i, len(a.Chunks))
	}
	if int64(len(data)) != length {
		return refuse(ReasonArtefact, "%s: chunk %d (from byte %d) is %d bytes long, the manifest says %d", a.Name, i, offset, len(data), length)
	}
	sum := sha256.Sum256(data)
	if want, err := hex.DecodeString(a.Chunks[i]); err != nil || !bytes.Equal(want, sum[:]) {
		return refuse(ReasonArtefact, "%s: chunk %d (bytes %d to %d) has sha256 %x, the manifest says %s",
			a.Name, i, offset, offset+length-1, sum, a.Chunks[i])
	}
	return nil
}

// Artefact returns the artefact of that name.
func (m *Manifest) Artefact(name string) (Artefact, bool) {
	for _, a := range m.Artefacts {
		if a.Name == name {
			return a, true
		}
	}
	return Artefact{}, false
}

// eachChunk calls f with every chunk of r, its index and its digest, and leaves the hex digest of the whole in whole.
func eachChunk(r io.Reader, f func(i int, chunk []byte, sum string) error, whole *string) error {
	all := sha256.New()
	buf := make([]byte, ChunkSize)
	for i := 0; ; i++ {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			all.Write(buf[:n])
			sum := sha256.Sum256(buf[:n])
			if err := f(i, buf[:n], hex.EncodeToString(sum[:])); err != nil {
				return err
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			*whole = hex.EncodeToString(all.Sum(nil))
			return nil
		default:
			return err
		}
	}
}
