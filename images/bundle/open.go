package bundle

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"portcullis/images/manifest"
)

// Limits of a reader, in bytes.
const (
	maxEnvelope = 1 << 20
	maxPiece    = manifest.ChunkSize + 64<<10 // a packed piece; zstd adds less to what it cannot pack
)

// Reader is an open bundle whose manifest has been verified.
type Reader struct {
	Manifest Manifest
	Digest   string // of the signed manifest, hex

	r      io.Reader
	unpack *zstd.Decoder
	next   int // artefact
}

// Open reads the manifest of a bundle and verifies it against trust. Every
// refusal is an *Error; any other error is of r.
func Open(r io.Reader, trust manifest.Trust) (*Reader, error) {
	head := make([]byte, len(magic)+4)
	if err := readFull(r, head, "the head"); err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, malformed("this is no update: it does not begin with %q", magic)
	}
	n := binary.LittleEndian.Uint32(head[len(magic):])
	if n > maxEnvelope {
		return nil, refuse(ReasonSize, "a manifest of %d bytes, at most %d are read", n, maxEnvelope)
	}
	envelope := make([]byte, n)
	if err := readFull(r, envelope, "the manifest"); err != nil {
		return nil, err
	}
	payload, err := manifest.OpenPayload(PayloadType, envelope, trust)
	if err != nil {
		return nil, fromManifest(err)
	}
	m, err := decode(payload)
	if err != nil {
		return nil, err
	}
	// One piece at a time, of a known size: whatever a frame claims, it gets no
	// more memory than that.
	unpack, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(manifest.ChunkSize), zstd.WithDecoderMaxWindow(manifest.ChunkSize))
	if err != nil {
		return nil, err
	}
	return &Reader{Manifest: m, Digest: Digest(payload), r: r, unpack: unpack}, nil
}

// Copy gives the pieces of the next artefact to use, in order, each after it was
// compared with the manifest; offset is the byte where it belongs. The artefacts
// come in the manifest's order: Boot, then Root.
func (b *Reader) Copy(name string, use func(offset int64, piece []byte) error) error {
	if b.next >= len(b.Manifest.Artefacts) || b.Manifest.Artefacts[b.next].Name != name {
		return malformed("%s is not what comes next", name)
	}
	a := b.Manifest.Artefacts[b.next]
	packed, piece := make([]byte, maxPiece), make([]byte, 0, manifest.ChunkSize)
	for i := range a.Chunks {
		var size [4]byte
		if err := readFull(b.r, size[:], a.Name); err != nil {
			return err
		}
		n := binary.LittleEndian.Uint32(size[:])
		if n > maxPiece {
			return refuse(ReasonSize, "%s: piece %d takes %d bytes, at most %d are read", a.Name, i, n, maxPiece)
		}
		if err := readFull(b.r, packed[:n], a.Name); err != nil {
			return err
		}
		plain, err := b.unpack.DecodeAll(packed[:n], piece[:0])
		if err != nil {
			return refuse(ReasonDiffers, "%s: piece %d cannot be unpacked: %v", a.Name, i, err)
		}
		if err := a.CheckChunk(i, plain); err != nil {
			return fromManifest(err)
		}
		offset, _ := a.ChunkRange(i)
		if err := use(offset, plain); err != nil {
			return err
		}
	}
	b.next++
	return nil
}

// Close says whether the file ended where it should, and frees memory.
func (b *Reader) Close() error {
	b.unpack.Close()
	if b.next < len(b.Manifest.Artefacts) {
		return nil
	}
	if n, _ := b.r.Read(make([]byte, 1)); n != 0 {
		return malformed("data behind the end of the bundle")
	}
	return nil
}

func readFull(r io.Reader, b []byte, what string) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse(ReasonTruncated, "the file ends inside %s", what)
	}
	return err
}
