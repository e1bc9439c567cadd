// Package verity computes dm-verity hash trees (format 1, SHA-256, blocks of
// 4096 bytes, no superblock; Documentation/admin-guide/device-mapper/verity.rst)
// and writes the kernel's table line for them. The image builders, the checks of
// images and hpc-init call it.
package verity

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
)

// BlockSize is the size in bytes of data blocks and of hash blocks.
const BlockSize = 4096

const (
	digestSize = sha256.Size
	perBlock   = BlockSize / digestSize // digests in one hash block
)

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

// TreeBlocks returns how many hash blocks the tree over dataBlocks blocks has.
func TreeBlocks(dataBlocks uint64) uint64 {
	var sum uint64
	for n := dataBlocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		sum += n
	}
	return sum
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

// VerifyBlock says whether block is data block index of the tree with that
// root hash and these hashes; it follows one path only, so it can be asked of
// a few blocks of a large image.
func VerifyBlock(root [32]byte, salt, hashes []byte, dataBlocks, index uint64, block []byte) error {
	if index >= dataBlocks || len(block) != BlockSize {
		return fmt.Errorf("verity: there is no data block %d of %d bytes", index, len(block))
	}
	if uint64(len(hashes)) != TreeBlocks(dataBlocks)*BlockSize {
		return fmt.Errorf("verity: a tree over %d blocks has %d hash blocks, these are %d bytes", dataBlocks, TreeBlocks(dataBlocks), len(hashes))
	}
	var sum [digestSize]byte
	hashBlock(sum[:0], salt, block)
	// The lowest level lies last.
	end := uint64(len(hashes))
	for n := dataBlocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		start := end - n*BlockSize
		at := start + index*digestSize
		if [digestSize]byte(hashes[at:at+digestSize]) != sum {
			return fmt.Errorf("verity: digest at byte %d of the tree differs", at)
		}
		index /= perBlock
		hashBlock(sum[:0], salt, hashes[start+index*BlockSize:start+(index+1)*BlockSize])
		end = start
	}
	if sum != root {
		return errors.New("verity: the tree does not lead to the root hash")
	}
	return nil
}

// Table is the parameters of the kernel's "verity" target for data and hashes
// on the devices given as major:minor or path. hashStart is the first block of
// the tree on the hash device; the target has dataBlocks*8 sectors of 512 bytes.
// Without an option a wrong block is an I/O error for its reader;
// "panic_on_corruption" stops the machine instead.
func Table(dataDevice, hashDevice string, dataBlocks, hashStart uint64, root [32]byte, salt []byte, options ...string) string {
	s := "-"
	if len(salt) > 0 {
		s = hex.EncodeToString(salt)
	}
	table := fmt.Sprintf("1 %s %s %d %d %d %d sha256 %x %s",
		dataDevice, hashDevice, BlockSize, BlockSize, dataBlocks, hashStart, root, s)
	if len(options) > 0 {
		table += fmt.Sprintf(" %d %s", len(options), strings.Join(options, " "))
	}
	return table
}
