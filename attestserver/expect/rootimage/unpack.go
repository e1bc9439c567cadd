package rootimage

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// unpacker decompresses one block to at most max bytes.
type unpacker func(block []byte, max int) ([]byte, error)

// Compressors of squashfs that an image may use.
const (
	compGzip = 1
	compXZ   = 4
	compZstd = 6
)

func newUnpacker(id uint16) (unpacker, error) {
	switch id {
	case compGzip:
		return func(b []byte, max int) ([]byte, error) {
			r, err := zlib.NewReader(bytes.NewReader(b))
			if err != nil {
				return nil, err
			}
			return readMax(r, max)
		}, nil
	case compXZ:
		return func(b []byte, max int) ([]byte, error) {
			r, err := xz.ReaderConfig{SingleStream: true}.NewReader(bytes.NewReader(b))
			if err != nil {
				return nil, err
			}
			return readMax(r, max)
		}, nil
	case compZstd:
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxBlockSize))
		if err != nil {
			return nil, err
		}
		return func(b []byte, max int) ([]byte, error) {
			out, err := d.DecodeAll(b, make([]byte, 0, max))
			if err == nil && len(out) > max {
				err = fmt.Errorf("more than %d bytes", max)
			}
			return out, err
		}, nil
	}
	return nil, fmt.Errorf("root image: squashfs compressor %d, want gzip, xz or zstd", id)
}

func readMax(r io.Reader, max int) ([]byte, error) {
	out := make([]byte, 0, max)
	buf := bytes.NewBuffer(out)
	n, err := io.Copy(buf, io.LimitReader(r, int64(max)+1))
	if err != nil {
		return nil, err
	}
	if n > int64(max) {
		return nil, fmt.Errorf("more than %d bytes", max)
	}
	return buf.Bytes(), nil
}
