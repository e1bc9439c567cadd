// Package verity computes dm-verity hash trees (format 1, SHA-256, blocks of
// 4096 bytes, no superblock; Documentation/admin-guide/device-mapper/verity.rst)
// over the data of an image. The image builders and the checks of images call it;
// the kernel's side of it, the table line, is in rootfs/boot.
package verity

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// BlockSize is the size in bytes of data blocks and of hash blocks.
const BlockSize = 4096

const digestSize = sha256.Size

// MaxSalt is the longest salt in bytes that the kernel accepts.
const MaxSalt = 256

// Tree is the hash tree of some data.
type Tree struct {
	RootHash   [32]byte
	Salt       []byte
	DataBlocks uint64
	// Hashes is the tree as it stands on the hash device: the level under the
	// root first, the digests of the data blocks last.
	Hashes []byte
}

// Build reads size bytes of data and computes their tree. size is a positive
// multiple of BlockSize. It uses two processors at least where there are two.
func Build(data io.ReaderAt, size int64, salt []byte) (*Tree, error) {
	if size <= 0 || size%BlockSize != 0 {
		return nil, fmt.Errorf("verity: %d bytes are not a positive multiple of %d", size, BlockSize)
	}
	if len(salt) > MaxSalt {
		return nil, fmt.Errorf("verity: salt of %d bytes, at most %d are possible", len(salt), MaxSalt)
	}
	t := &Tree{Salt: append([]byte{}, salt...), DataBlocks: uint64(size / BlockSize)}
	level, err := hashData(data, size/BlockSize, salt)
	if err != nil {
		return nil, fmt.Errorf("verity: %w", err)
	}
	var levels [][]byte // from the data up
	levels = append(levels, level)
	for len(level) > BlockSize {
		level = hashLevel(level, salt)
		levels = append(levels, level)
	}
	top := levels[len(levels)-1]
	// Data of a single block has no tree: its digest is the root hash.
	if t.DataBlocks == 1 {
		copy(t.RootHash[:], top)
		return t, nil
	}
	hashBlock(t.RootHash[:0], salt, top)
	for i := len(levels) - 1; i >= 0; i-- {
		t.Hashes = append(t.Hashes, levels[i]...)
	}
	return t, nil
}

// hashData returns the digests of all blocks, padded with zeros to a hash block.
func hashData(data io.ReaderAt, blocks int64, salt []byte) ([]byte, error) {
	const step = 256 // blocks read at once by a worker: 1 MiB
	out := make([]byte, padded(blocks*digestSize))
	workers := max(2, runtime.GOMAXPROCS(0))
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			buf := make([]byte, step*BlockSize)
			for first := int64(w) * step; first < blocks; first += int64(workers) * step {
				n := min(step, blocks-first)
				part := buf[:n*BlockSize]
				if got, err := data.ReadAt(part, first*BlockSize); got != len(part) {
					if err == nil || err == io.EOF {
						err = io.ErrUnexpectedEOF
					}
					errs[w] = fmt.Errorf("read at byte %d: %w", first*BlockSize, err)
					return
				}
				hashBlocks(out[first*digestSize:], part, salt)
			}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

func hashLevel(level, salt []byte) []byte {
	out := make([]byte, padded(int64(len(level)/BlockSize)*digestSize))
	hashBlocks(out, level, salt)
	return out
}

// hashBlocks writes the digests of the blocks of data to out, one behind the other.
func hashBlocks(out, data, salt []byte) {
	for i := 0; i*BlockSize < len(data); i++ {
		hashBlock(out[i*digestSize:i*digestSize], salt, data[i*BlockSize:(i+1)*BlockSize])
	}
}

// hashBlock appends SHA-256(salt ‖ block) to dst; format 1 puts the salt first.
func hashBlock(dst, salt, block []byte) {
	h := sha256.New()
	h.Write(salt)
	h.Write(block)
	h.Sum(dst)
}

// padded rounds n bytes up to whole blocks.
func padded(n int64) int64 { return (n + BlockSize - 1) / BlockSize * BlockSize }

// Root returns the root hash as hex.
func (t *Tree) Root() string { return hex.EncodeToString(t.RootHash[:]) }
