package translog

import (
	"io/fs"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Reader reads the files of a log below its checkpoint and believes nothing of
// them that the checkpoint does not cover.
type Reader struct {
	Checkpoint *Checkpoint
	fsys       fs.FS
	hashes     tlog.HashReader
}

// NewReader reads the checkpoint of the log in fsys; key must have signed it.
func NewReader(fsys fs.FS, key note.Verifier) (*Reader, error) {
	msg, err := readFile(fsys, "checkpoint", maxCheckpoint)
	if err != nil {
		return nil, err
	}
	c, err := ParseCheckpoint(msg, key)
	if err != nil {
		return nil, err
	}
	r := &Reader{Checkpoint: c, fsys: fsys}
	r.hashes = tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, tiles{fsys})
	return r, nil
}

// tiles implements tlog.TileReader.
type tiles struct{ fsys fs.FS }

func (tiles) Height() int { return tileHeight }

func (t tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	all := make([][]byte, len(want))
	for i, w := range want {
		b, err := readTile(t.fsys, w.L, w.N, w.W)
		if err != nil {
			return nil, err
		}
		all[i] = b
	}
	return all, nil
}

func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}

// Entry returns an entry after it was checked against the checkpoint.
func (r *Reader) Entry(index int64) ([]byte, error) {
	if index < 0 || index >= r.Checkpoint.Size {
		return nil, refuse(ReasonIndex, "entry %d of %d", index, r.Checkpoint.Size)
	}
	e, err := r.raw(index)
	if err != nil {
		return nil, err
	}
	h, err := r.hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
	if err != nil {
		return nil, refuse(ReasonBroken, "%v", err)
	}
	if tlog.RecordHash(e) != h[0] {
		return nil, refuse(ReasonBroken, "entry %d is not the one that was signed", index)
	}
	return e, nil
}

func (r *Reader) raw(index int64) ([]byte, error) {
	n := index / tileWidth
	width := int(min(tileWidth, r.Checkpoint.Size-n*tileWidth))
	entries, err := readBundle(r.fsys, n, width)
	if err != nil {
		return nil, err
	}
	return entries[index%tileWidth], nil
}

// Audit reads every entry and compares the tree over all of them with the
// checkpoint. each, which may be nil, gets the entries in order.
func (r *Reader) Audit(each func(index int64, entry []byte) error) error {
	var tree frontier
	for tree.size < r.Checkpoint.Size {
		n := tree.size / tileWidth
		entries, err := readBundle(r.fsys, n, int(min(tileWidth, r.Checkpoint.Size-tree.size)))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if each != nil {
				if err := each(tree.size, e); err != nil {
					return err
				}
			}
			for _, t := range tree.add(tlog.RecordHash(e)) {
				have, err := readTile(r.fsys, t.level, t.index, tileWidth)
				if err != nil {
					return err
				}
				if string(have) != string(encodeTile(t.hashes)) {
					return refuse(ReasonBroken, "%s is not of the entries below it", tilePath(t.level, t.index, tileWidth))
				}
			}
		}
	}
	if tree.root() != r.Checkpoint.Root {
		return refuse(ReasonBroken, "the %d entries are not those that were signed", r.Checkpoint.Size)
	}
	return nil
}

// Continues checks that this log is the continuation of what an earlier
// checkpoint signed: nothing below it was changed or taken out.
func (r *Reader) Continues(earlier *Checkpoint) error {
	if earlier.Origin != r.Checkpoint.Origin {
		return refuse(ReasonFork, "%q and %q are two logs", earlier.Origin, r.Checkpoint.Origin)
	}
	if earlier.Size > r.Checkpoint.Size {
		return refuse(ReasonFork, "%d entries were signed earlier, there are %d", earlier.Size, r.Checkpoint.Size)
	}
	if earlier.Size == 0 {
		return nil
	}
	if earlier.Size == r.Checkpoint.Size {
		if earlier.Root != r.Checkpoint.Root {
			return refuse(ReasonFork, "two roots were signed for %d entries", earlier.Size)
		}
		return nil
	}
	proof, err := tlog.ProveTree(r.Checkpoint.Size, earlier.Size, r.hashes)
	if err != nil {
		return refuse(ReasonBroken, "%v", err)
	}
	return continued(r.Checkpoint, earlier, proof)
}

func continued(now, earlier *Checkpoint, proof tlog.TreeProof) error {
	if err := tlog.CheckTree(proof, now.Size, now.Root, earlier.Size, earlier.Root); err != nil {
		return refuse(ReasonFork, "the %d entries that were signed earlier are not the first of the %d signed now", earlier.Size, now.Size)
	}
	return nil
}

// Consistency is the proof (RFC 6962 §2.1.2) that this log continues an earlier
// checkpoint; it is empty where that has no entry or all of them.
func (r *Reader) Consistency(earlier *Checkpoint) ([][]byte, error) {
	if err := r.Continues(earlier); err != nil || earlier.Size == 0 || earlier.Size == r.Checkpoint.Size {
		return nil, err
	}
	proof, err := tlog.ProveTree(r.Checkpoint.Size, earlier.Size, r.hashes)
	if err != nil {
		return nil, refuse(ReasonBroken, "%v", err)
	}
	hashes := make([][]byte, len(proof))
	for i := range proof {
		hashes[i] = proof[i][:]
	}
	return hashes, nil
}

// CheckConsistency checks such a proof without the log.
func CheckConsistency(now, earlier *Checkpoint, hashes [][]byte) error {
	if earlier.Origin != now.Origin || earlier.Size > now.Size {
		return refuse(ReasonFork, "%d entries of %q do not come before %d of %q", earlier.Size, earlier.Origin, now.Size, now.Origin)
	}
	if earlier.Size == 0 {
		return nil
	}
	if earlier.Size == now.Size && earlier.Root == now.Root {
		return nil
	}
	if earlier.Size == now.Size || len(hashes) > 2*maxHashes {
		return refuse(ReasonFork, "two roots for %d entries, or a proof of %d hashes", earlier.Size, len(hashes))
	}
	proof := make(tlog.TreeProof, len(hashes))
	for i, h := range hashes {
		if len(h) != tlog.HashSize {
			return refuse(ReasonProof, "a hash of %d bytes", len(h))
		}
		proof[i] = tlog.Hash(h)
	}
	return continued(now, earlier, proof)
}
