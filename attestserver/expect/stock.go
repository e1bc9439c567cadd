package expect

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/klauspost/compress/zstd"

	"portcullis/attestserver/protocol"
	"portcullis/images/manifest"
)

// errRefused abandons a reference: the judge has the findings.
var errRefused = errors.New("the answer is not what a reference is taken from")

// taking is held while a reference is taken from the signed kernel, for whatever PC: an
// answer that is decoded, the mask and the window of what is unpacked take tens of MiB, and
// the PCs of a rack that boot a new image at the same time would have as much each.
var taking sync.Mutex

// withKernel opens the image's kernel file, for who holds taking. What unpacking it took is
// given back: enrolments are rare, memory is not ample.
func (im *image) withKernel(do func(f *os.File, size int64) error) error {
	f, err := os.Open(filepath.Join(im.Dir, manifest.Kernel))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // the answer was decoded: what that left is not to lie beside the window
	defer debug.FreeOSMemory()
	return do(f, st.Size())
}

// pieceMACs are the keyed digests of an answer's pieces.
type pieceMACs struct {
	keyed *protocol.MACs
	list  []byte // protocol.KtextMACSize bytes a piece
}

func (p pieceMACs) same(i int, piece []byte) bool {
	m := p.keyed.KtextMAC(i, piece)
	return bytes.Equal(m[:], p.list[i*protocol.KtextMACSize:][:protocol.KtextMACSize])
}

// unpackPieces unpacks what a PC sent, which must be size bytes.
func unpackPieces(packed []byte, size int) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(max(uint64(size)+1, 2<<20)))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	raw, err := d.DecodeAll(packed, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("pieces: %w", err)
	}
	if len(raw) != size {
		return nil, fmt.Errorf("pieces of %d bytes, want %d", len(raw), size)
	}
	return raw, nil
}
