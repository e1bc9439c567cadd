package bundle

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"portcullis/images/manifest"
)

// The file, integers little endian:
//
//	magic, 12 bytes | length of the envelope u32 | envelope (DSSE)
//	for each artefact and each of its pieces of manifest.ChunkSize, in order: length u32 | one zstd frame
//
// Pieces stand alone, so that a reader has checked a piece before it uses it and
// never unpacks more than one.
const magic = "PCUPDATE v1\n"

// Write makes a bundle. It reads both sources twice, fills in m.Artefacts and
// returns the manifest as it was signed. The same inputs give the same bytes.
func Write(w io.Writer, m Manifest, boot, root io.ReadSeeker, signers ...crypto.Signer) (Manifest, error) {
	sources := []struct {
		name string
		r    io.ReadSeeker
	}{{Boot, boot}, {Root, root}}
	m.Schema, m.Artefacts = Schema, nil
	for _, s := range sources {
		if _, err := s.r.Seek(0, io.SeekStart); err != nil {
			return m, fmt.Errorf("%s: %w", s.name, err)
		}
		a, err := manifest.Describe(s.name, s.r)
		if err != nil {
			return m, err
		}
		m.Artefacts = append(m.Artefacts, a)
	}
	if err := m.Validate(); err != nil {
		return m, err
	}
	payload, err := encode(m)
	if err != nil {
		return m, err
	}
	envelope, err := manifest.SignPayload(PayloadType, payload, signers...)
	if err != nil {
		return m, fromManifest(err)
	}
	head := append([]byte(magic), binary.LittleEndian.AppendUint32(nil, uint32(len(envelope)))...)
	if _, err := w.Write(append(head, envelope...)); err != nil {
		return m, err
	}
	pack, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(manifest.ChunkSize))
	if err != nil {
		return m, err
	}
	defer pack.Close()
	for i, s := range sources {
		if _, err := s.r.Seek(0, io.SeekStart); err != nil {
			return m, fmt.Errorf("%s: %w", s.name, err)
		}
		if err := writePieces(w, pack, m.Artefacts[i], s.r); err != nil {
			return m, err
		}
	}
	return m, nil
}

func writePieces(w io.Writer, pack *zstd.Encoder, a manifest.Artefact, r io.Reader) error {
	var piece, packed bytes.Buffer
	for i := range a.Chunks {
		_, n := a.ChunkRange(i)
		piece.Reset()
		if _, err := io.CopyN(&piece, r, n); err != nil {
			return fmt.Errorf("%s: %w", a.Name, err)
		}
		// A source that changed between the two readings would give a bundle
		// that nobody accepts.
		if err := a.CheckChunk(i, piece.Bytes()); err != nil {
			return fromManifest(err)
		}
		packed.Reset()
		packed.Write(make([]byte, 4))
		b := pack.EncodeAll(piece.Bytes(), packed.Bytes())
		binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}
