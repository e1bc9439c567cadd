package modlist

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds one module, decompressed.
const maxModule = 64 << 20

// BuildID reads the build id of a module file, compressed or not.
func BuildID(ko []byte) (string, error) {
	plain, err := Unpack(ko)
	if err != nil {
		return "", err
	}
	f, err := elf.NewFile(bytes.NewReader(plain))
	if err != nil {
		return "", err
	}
	s := f.Section(".note.gnu.build-id")
	if s == nil || s.Size > 256 {
		return "", errors.New("no build id")
	}
	note, err := s.Data()
	if err != nil {
		return "", err
	}
	return NoteBuildID(note)
}

// Unpack returns a module file as it is loaded: an ELF file, out of xz, zstd or gzip. At most
// maxModule bytes.
func Unpack(b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		return b, nil
	case bytes.HasPrefix(b, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, err = xz.NewReader(bytes.NewReader(b))
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderMaxMemory(maxModule)); err == nil {
			defer d.Close()
			r = d
		}
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(b))
	default:
		return nil, errors.New("not an ELF file, nor one packed with xz, zstd or gzip")
	}
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, err
	}
	if len(out) > maxModule {
		return nil, fmt.Errorf("more than %d bytes", maxModule)
	}
	return out, nil
}
