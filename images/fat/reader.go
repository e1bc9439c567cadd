package fat

import (
	"fmt"
	"io"
	"sort"
)

// maxPieces bounds the memory of one open file.
const maxPieces = 1 << 16

// piece is a contiguous part of a file.
type piece struct{ at, from, size int64 } // in the file, on the volume, bytes

type pieces struct {
	r    io.ReaderAt
	list []piece
}

// Reader opens a file for reading at any place. A file in more than 65536 pieces is
// refused with ReasonFragmented.
func (f *FS) Reader(path string) (*io.SectionReader, error) {
	e, err := f.find(path)
	if err != nil {
		return nil, err
	}
	p := &pieces{r: f.r}
	var at int64
	err = f.runs(e.cluster, f.needs(e.Size), func(start uint32, n int64) error {
		if len(p.list) == maxPieces {
			return refuse(ReasonFragmented, "%s is in more than %d pieces", path, maxPieces)
		}
		size := n * f.g.clusterSize()
		p.list = append(p.list, piece{at, f.g.offset(start), size})
		at += size
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return io.NewSectionReader(p, 0, e.Size), nil
}

// ReadAt reads within the file's clusters; the section around it knows the size.
func (p *pieces) ReadAt(b []byte, off int64) (n int, err error) {
	i := sort.Search(len(p.list), func(i int) bool { return p.list[i].at+p.list[i].size > off })
	for ; i < len(p.list) && n < len(b); i++ {
		skip := off + int64(n) - p.list[i].at
		part := b[n:min(len(b), n+int(min(p.list[i].size-skip, int64(len(b)))))]
		if err := readFull(p.r, part, p.list[i].from+skip); err != nil {
			return n, err
		}
		n += len(part)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
