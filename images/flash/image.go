package flash

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"

	"portcullis/images/blockmap"
	"portcullis/images/manifest"
)

// Names of the files that belong together.
const (
	ImageSuffix = ".img.zst"
	MapSuffix   = ".blockmap.json"
)

// maxWindow is the largest zstd window in bytes that is unpacked.
const maxWindow = 64 << 20

// Image is a compressed disk image with its map.
type Image struct {
	Path   string
	Map    *blockmap.Map
	Digest blockmap.Digest // of the map; through it of everything
	KeyIDs []string        // keys that the signature names
	Known  bool            // the signature was verified with keys that the operator gave
}

// OpenImage reads the map beside an image. With keys one of them at least must
// have signed it; without, nobody can tell who made it, and Known is false.
func OpenImage(path string, trust *manifest.Trust) (*Image, error) {
	base, ok := strings.CutSuffix(path, ImageSuffix)
	if !ok {
		return nil, fmt.Errorf("%s: the name of an image ends in %s, its map beside it in %s", path, ImageSuffix, MapSuffix)
	}
	f, err := os.Open(base + MapSuffix)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, manifest.MaxEnvelope+1))
	if err != nil {
		return nil, err
	}
	i := &Image{Path: path}
	if i.Map, i.KeyIDs, err = blockmap.Peek(data); trust != nil {
		i.Map, err = blockmap.Open(data, *trust)
		i.Known = err == nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", base+MapSuffix, err)
	}
	i.Digest, err = i.Map.Digest()
	return i, err
}

// piece is a part of the image on its way to the device.
type piece struct {
	start  int64
	length int64
	index  int    // of the range; -1 for a part that is zero
	data   []byte // nil for a part that is zero
}

// pieces lists ranges and gaps in the order of the image.
func pieces(m *blockmap.Map) []piece {
	out := make([]piece, 0, 2*len(m.Ranges))
	gaps := m.Gaps()
	for i, r := range m.Ranges {
		for len(gaps) > 0 && gaps[0].Start < r.Start {
			out = append(out, piece{gaps[0].Start, gaps[0].Length, -1, nil})
			gaps = gaps[1:]
		}
		out = append(out, piece{r.Start, r.Length, i, nil})
	}
	for _, g := range gaps {
		out = append(out, piece{g.Start, g.Length, -1, nil})
	}
	return out
}

// ahead is how many pieces are unpacked before they can be written.
const ahead = 3

// unpack decompresses the image and gives its pieces in order, each compared with
// the map. A piece belongs to use until use returns.
func (i *Image) unpack(ctx context.Context, use func(piece) error) error {
	f, err := os.Open(i.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != i.Map.Compressed.Size {
		return &blockmap.Error{Reason: blockmap.ReasonDiffers, Detail: fmt.Sprintf("%s has %d bytes, its map says %d", i.Path, st.Size(), i.Map.Compressed.Size)}
	}
	ctx, cancel := context.WithCancel(ctx)
	full, free := make(chan piece, ahead), make(chan []byte, ahead)
	for range ahead {
		free <- buffer(blockmap.MaxRange)
	}
	failed := make(chan error, 1)
	go func() {
		defer close(full)
		failed <- i.produce(ctx, f, full, free)
	}()
	err = nil
	for p := range full {
		if err == nil {
			if err = use(p); err != nil {
				cancel()
			}
		}
		if p.data != nil {
			free <- p.data[:blockmap.MaxRange]
		}
	}
	cancel()
	if made := <-failed; err == nil {
		err = made
	}
	return err
}

func (i *Image) produce(ctx context.Context, f *os.File, full chan<- piece, free <-chan []byte) error {
	differs := func(format string, args ...any) error {
		return &blockmap.Error{Reason: blockmap.ReasonDiffers, Detail: fmt.Sprintf("%s: ", i.Path) + fmt.Sprintf(format, args...)}
	}
	sum := sha256.New()
	dec, err := zstd.NewReader(io.TeeReader(bufio.NewReaderSize(f, 1<<20), sum), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return err
	}
	defer dec.Close()
	for _, p := range pieces(i.Map) {
		var b []byte
		select {
		case b = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.data = b[:p.length]
		if n, err := io.ReadFull(dec, p.data); err != nil {
			return differs("unpacking ends at %d of %d bytes: %v", p.start+int64(n), i.Map.Size, err)
		}
		// Nothing reaches the device that the map does not vouch for.
		if p.index < 0 && !blockmap.Zero(p.data) || p.index >= 0 && sha256.Sum256(p.data) != i.Map.Ranges[p.index].SHA256 {
			return differs("%d bytes at %d are not those of the map", p.length, p.start)
		}
		select {
		case full <- p:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if n, err := io.ReadFull(dec, make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return differs("something follows the image (%v)", err)
	}
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if blockmap.Digest(sum.Sum(nil)) != i.Map.Compressed.SHA256 {
		return differs("the digest of the file differs")
	}
	return nil
}
