package ktextmask

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxKernel bounds the decompressed kernel.
const maxKernel = 256 << 20

// Offsets in the setup header, Documentation/arch/x86/boot.rst.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offKernelVersion = 0x20e
	offPayload       = 0x248
	offPayloadLength = 0x24c
)

// Release reads the release ("6.12.1-amd64") from a bzImage's setup header.
func Release(bzImage []byte) (string, error) {
	if err := checkHeader(bzImage); err != nil {
		return "", err
	}
	at := int(binary.LittleEndian.Uint16(bzImage[offKernelVersion:])) + 0x200
	if at >= len(bzImage) {
		return "", errors.New("bzImage: version string is outside of the file")
	}
	s := bzImage[at:min(at+256, len(bzImage))]
	end := bytes.IndexByte(s, 0)
	if end < 0 {
		return "", errors.New("bzImage: version string has no end")
	}
	release, _, _ := strings.Cut(string(s[:end]), " ")
	if release == "" {
		return "", errors.New("bzImage: empty version string")
	}
	return release, nil
}

// Vmlinux takes the kernel's ELF file out of a bzImage. Debian's kernels are
// compressed with zstd (trixie) or xz; gzip is the upstream default.
func Vmlinux(bzImage []byte) ([]byte, error) {
	if err := checkHeader(bzImage); err != nil {
		return nil, err
	}
	sects := int(bzImage[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := uint64(sects+1)*512 + uint64(binary.LittleEndian.Uint32(bzImage[offPayload:]))
	length := uint64(binary.LittleEndian.Uint32(bzImage[offPayloadLength:]))
	if start+length > uint64(len(bzImage)) || length < 8 {
		return nil, errors.New("bzImage: payload is outside of the file")
	}
	p := bzImage[start : start+length]
	// The build appends the decompressed size; gzip ends with its own.
	size := binary.LittleEndian.Uint32(p[len(p)-4:])
	if size > maxKernel {
		return nil, fmt.Errorf("bzImage: kernel of %d bytes", size)
	}
	r, err := decompressor(p)
	if err != nil {
		return nil, fmt.Errorf("bzImage: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(size)+1))
	if err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	if len(out) != int(size) {
		return nil, fmt.Errorf("bzImage: kernel of %d bytes or more, its head says %d", len(out), size)
	}
	return out, nil
}

func decompressor(p []byte) (io.Reader, error) {
	body := p[:len(p)-4]
	switch {
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(maxKernel), zstd.WithDecoderMaxMemory(2*maxKernel))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case bytes.HasPrefix(p, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(bytes.NewReader(body))
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		return gzip.NewReader(bytes.NewReader(p))
	}
	return nil, fmt.Errorf("payload begins with % x: not zstd, xz or gzip", p[:4])
}

func checkHeader(b []byte) error {
	if len(b) < 0x268 || !bytes.Equal(b[offMagic:offMagic+4], []byte("HdrS")) {
		return errors.New("not a bzImage: no HdrS at 0x202")
	}
	return nil
}
