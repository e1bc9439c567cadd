package translog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"

	"portcullis/internal/atomicfile"
)

// tilePath is the path of a tile of hashes; width is tileWidth for a full one.
func tilePath(level int, index int64, width int) string {
	return partial(path.Join("tile", fmt.Sprint(level), elements(index)), width)
}

// bundlePath is the path of a bundle of entries.
func bundlePath(index int64, width int) string {
	return partial(path.Join("tile", "entries", elements(index)), width)
}

func partial(p string, width int) string {
	if width == tileWidth {
		return p
	}
	return fmt.Sprintf("%s.p/%d", p, width)
}

// elements writes an index in groups of three digits: x001/x234/067.
func elements(n int64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	return s
}

func encodeTile(hashes []tlog.Hash) []byte {
	b := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b
}

func encodeBundle(entries [][]byte) []byte {
	var b []byte
	for _, e := range entries {
		b = binary.BigEndian.AppendUint16(b, uint16(len(e)))
		b = append(b, e...)
	}
	return b
}

// ParseBundle splits a bundle into its entries, at most 256.
func ParseBundle(b []byte) ([][]byte, error) {
	var entries [][]byte
	for len(b) > 0 {
		if len(entries) == tileWidth {
			return nil, refuse(ReasonTile, "a bundle of more than %d entries", tileWidth)
		}
		if len(b) < 2 {
			return nil, refuse(ReasonTile, "a bundle that ends inside of a length")
		}
		n := int(binary.BigEndian.Uint16(b))
		if n == 0 || len(b)-2 < n {
			return nil, refuse(ReasonTile, "a bundle with an entry of %d bytes, %d are left", n, len(b)-2)
		}
		entries = append(entries, b[2:2+n:2+n])
		b = b[2+n:]
	}
	return entries, nil
}

// maxBundle bounds what is read of one bundle.
const maxBundle = tileWidth * (2 + MaxEntry)

// readFile reads a file of the log, at most max bytes.
func readFile(fsys fs.FS, name string, max int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(ReasonMissing, "%s is not there", name)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, refuse(ReasonTile, "%s is longer than %d bytes", name, max)
	}
	return b, nil
}

// readTile reads width hashes of a tile: from the partial one, or from the full
// one that has replaced it.
func readTile(fsys fs.FS, level int, index int64, width int) ([]byte, error) {
	name := tilePath(level, index, width)
	b, err := readFile(fsys, name, tileWidth*tlog.HashSize)
	if width < tileWidth && Reason(err) == ReasonMissing {
		if b, err = readFile(fsys, tilePath(level, index, tileWidth), tileWidth*tlog.HashSize); err == nil && len(b) == tileWidth*tlog.HashSize {
			b = b[:width*tlog.HashSize]
		}
	}
	if err != nil {
		return nil, err
	}
	if len(b) != width*tlog.HashSize {
		return nil, refuse(ReasonTile, "%s has %d bytes, want %d", name, len(b), width*tlog.HashSize)
	}
	return b, nil
}

// readBundle reads width entries in the same way.
func readBundle(fsys fs.FS, index int64, width int) ([][]byte, error) {
	name := bundlePath(index, width)
	b, err := readFile(fsys, name, maxBundle)
	if width < tileWidth && Reason(err) == ReasonMissing {
		b, err = readFile(fsys, bundlePath(index, tileWidth), maxBundle)
	}
	if err != nil {
		return nil, err
	}
	entries, err := ParseBundle(b)
	if err != nil {
		return nil, err
	}
	if len(entries) < width {
		return nil, refuse(ReasonTile, "%s has %d entries, want %d", name, len(entries), width)
	}
	return entries[:width], nil
}

// writeFile puts a file into its place at once. With durable it is on the disk
// when writeFile returns, its name included.
func writeFile(dir, name string, data []byte, durable bool) error {
	full := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Replace(full, data, durable); err != nil || !durable {
		return err
	}
	return syncDirs(dir, filepath.Dir(full))
}

// syncDirs makes the names above at durable, up to root: a directory may be new.
func syncDirs(root, at string) error {
	for at != root && len(at) > len(root) {
		at = filepath.Dir(at)
		if err := atomicfile.SyncDir(at); err != nil {
			return err
		}
	}
	return nil
}
