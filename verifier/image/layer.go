package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// packing is how a layer is compressed.
type packing int

const (
	packedAny packing = iota // whatever its first bytes say: docker save does not
	packedNot
	packedGzip
	packedZstd
)

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// What engines would unpack too, by programs of the host.
	foreignMagic = [][]byte{[]byte("BZh"), {0xfd, '7', 'z', 'X', 'Z', 0}, {0x50, 0x2a, 0x4d, 0x18}}
)

// maxWindow is the memory that a zstd layer may ask for.
const maxWindow = 8 << 20

// mediaTypes are those that our own manifests give to a packing.
var mediaTypes = map[packing]string{packedNot: ociLayer, packedGzip: ociLayer + "+gzip", packedZstd: ociLayer + "+zstd"}

// sniff finds out how a layer is packed: engines go by its first bytes, whatever
// its media type says, so the two must agree.
func sniff(r *bufio.Reader, named packing) (packing, error) {
	head, _ := r.Peek(6)
	is := packedNot
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		is = packedGzip
	case bytes.HasPrefix(head, zstdMagic):
		is = packedZstd
	}
	for _, m := range foreignMagic {
		if bytes.HasPrefix(head, m) {
			return 0, refuse(ReasonMediaType, "a layer packed with bzip2, xz or skippable frames")
		}
	}
	if named != packedAny && named != is {
		return 0, refuse(ReasonMediaType, "a layer that is not packed as its media type says")
	}
	return is, nil
}

// unpack returns the layer's tar stream.
func unpack(r *bufio.Reader, p packing) (io.ReadCloser, error) {
	switch p {
	case packedGzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, refuse(ReasonTar, "gzip: %v", err)
		}
		return z, nil
	case packedZstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, refuse(ReasonTar, "zstd: %v", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// budget is what is left of the limits while an image is read.
type budget struct {
	limits   Limits
	packed   int64 // read
	unpacked int64
	entries  int
	links    map[pathSum]bool // symbolic links of the layers so far, merged
	sparse   bool             // at some place more was unpacked than limits.Ratio for what was read
	notes    *notes           // nil: all layers below are known
	room     int              // in notes
	total    int64            // packed bytes that will be read
	progress func(done, total int64)
	told     int64
}

// packedReader counts and hashes what is read of a blob.
type packedReader struct {
	ctx    context.Context
	from   io.Reader
	digest hash.Hash
	budget *budget
}

func (p *packedReader) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := p.from.Read(b)
	p.digest.Write(b[:n])
	p.budget.read(int64(n))
	return n, err
}

// read counts packed bytes.
func (g *budget) read(n int64) {
	g.packed += n
	if n > 0 && g.progress != nil && (g.packed-g.told >= 1<<20 || g.packed == g.total) {
		g.told = g.packed
		g.progress(g.packed, g.total)
	}
}

// unpackedReader does so for the tar stream, and stops bombs.
type unpackedReader struct {
	from   io.Reader
	digest hash.Hash // nil where somebody else hashes the same bytes
	budget *budget
}

func (u *unpackedReader) Read(b []byte) (int, error) {
	n, err := u.from.Read(b)
	if u.digest != nil {
		u.digest.Write(b[:n])
	}
	g := u.budget
	g.unpacked += int64(n)
	if g.unpacked > g.limits.Unpacked {
		return n, refuse(ReasonTooLarge, "more than %d bytes unpacked", g.limits.Unpacked)
	}
	g.sparse = g.sparse || g.unpacked/g.limits.Ratio >= g.packed
	if g.unpacked > 64<<20 && g.unpacked/g.limits.Ratio > g.packed {
		return n, refuse(ReasonTooLarge, "%d bytes unpacked from %d", g.unpacked, g.packed)
	}
	return n, err
}

var buffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 256<<10) }}

// read goes through a layer once and fills in what it is.
func (l *Layer) read(ctx context.Context, b *blob, g *budget) error {
	c, err := readContents(ctx, b, l.packing, g)
	if err != nil {
		return err
	}
	return l.compare(c)
}

// readContents goes through a layer once.
func readContents(ctx context.Context, b *blob, named packing, g *budget) (*contents, error) {
	packed := &packedReader{ctx, b.reader(), sha256.New(), g}
	r := buffers.Get().(*bufio.Reader)
	r.Reset(packed)
	defer buffers.Put(r)
	p, err := sniff(r, named)
	if err != nil {
		return nil, err
	}
	z, err := unpack(r, p)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	unpacked := &unpackedReader{z, sha256.New(), g}
	if p == packedNot {
		unpacked.digest = nil // the same bytes: they are hashed once
	}
	c := &contents{packing: p, size: b.size, unpacked: -g.unpacked, entries: -g.entries}
	if c.tree, err = readTar(unpacked, g); err != nil {
		return nil, err
	}
	if err := onlyZeros(unpacked); err != nil {
		return nil, err
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n > 0 {
		return nil, errors.Join(refuse(ReasonTar, "%d bytes behind the end of the packed layer", n), err)
	}
	c.unpacked += g.unpacked
	c.entries += g.entries
	c.sparse = g.sparse
	c.digest = sum(packed.digest)
	if c.diffID = c.digest; p != packedNot {
		c.diffID = sum(unpacked.digest)
	}
	return c, nil
}

// compare holds what was found against what was named.
func (l *Layer) compare(c *contents) error {
	l.Unpacked, l.Tree = c.unpacked, c.tree
	if l.Digest == "" { // of docker save: nothing but the diffID was named
		l.Digest, l.Size, l.MediaType = c.digest, c.size, mediaTypes[c.packing]
	}
	if l.Digest != c.digest || l.Size != c.size {
		return refuse(ReasonBlob, "a layer has %d bytes and the digest %s; %d and %s were named", c.size, c.digest, l.Size, l.Digest)
	}
	if l.DiffID != c.diffID {
		return refuse(ReasonConfig, "layer %s unpacks to %s, the configuration says %s", c.digest, c.diffID, l.DiffID)
	}
	return nil
}

func sum(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// onlyZeros reads the rest of a tar stream: padding, and no second archive that
// another reader might find.
func onlyZeros(r io.Reader) error {
	b := make([]byte, 32<<10)
	for {
		n, err := r.Read(b)
		for _, c := range b[:n] {
			if c != 0 {
				return refuse(ReasonTar, "data behind the end of a layer")
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return tarError(err)
		}
	}
}

// tarError keeps a typed reason that came up through the tar reader.
func tarError(err error) error {
	if Reason(err) != "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return refuse(ReasonTar, "a layer: %v", err)
}

// readTar goes through the entries of one layer.
func readTar(r io.Reader, g *budget) (*Tree, error) {
	t := newTree(g)
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return t.done(), nil
		}
		if err != nil {
			return nil, tarError(err)
		}
		if g.entries++; g.entries > g.limits.Entries {
			return nil, refuse(ReasonTooLarge, "more than %d names", g.limits.Entries)
		}
		if err := t.add(h, archive); err != nil {
			return nil, err
		}
	}
}
