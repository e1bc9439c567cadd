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
	payload, size, err := findPayload(bytes.NewReader(bzImage), int64(len(bzImage)))
	if err != nil {
		return nil, err
	}
	r, err := decompressor(payload, uint64(size))
	if err != nil {
		return nil, fmt.Errorf("bzImage: %w", err)
	}
	defer r.Close()
	out, err := io.ReadAll(io.LimitReader(r, int64(size)+1))
	if err != nil {
		return nil, fmt.Errorf("bzImage: decompress: %w", err)
	}
	if len(out) != int(size) {
		return nil, fmt.Errorf("bzImage: kernel of %d bytes or more, its head says %d", len(out), size)
	}
	return out, nil
}

// findPayload returns the compressed kernel and its size when it is unpacked.
func findPayload(bzImage io.ReaderAt, size int64) (payload *io.SectionReader, unpacked uint32, err error) {
	head := make([]byte, min(size, headerSize))
	if _, err := bzImage.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("bzImage: %w", err)
	}
	if err := checkHeader(head); err != nil {
		return nil, 0, err
	}
	sects := int64(head[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + int64(binary.LittleEndian.Uint32(head[offPayload:]))
	length := int64(binary.LittleEndian.Uint32(head[offPayloadLength:]))
	if start+length > size || length < 8 {
		return nil, 0, errors.New("bzImage: payload is outside of the file")
	}
	// The build appends the unpacked size; gzip ends with its own.
	var last [4]byte
	if _, err := bzImage.ReadAt(last[:], start+length-4); err != nil {
		return nil, 0, fmt.Errorf("bzImage: %w", err)
	}
	if unpacked = binary.LittleEndian.Uint32(last[:]); unpacked > maxKernel {
		return nil, 0, fmt.Errorf("bzImage: kernel of %d bytes", unpacked)
	}
	return io.NewSectionReader(bzImage, start, length), unpacked, nil
}

// decompressor unpacks a payload of which no more than the first n bytes are read.
func decompressor(p *io.SectionReader, n uint64) (io.ReadCloser, error) {
	var magic [6]byte
	if _, err := p.ReadAt(magic[:], 0); err != nil {
		return nil, err
	}
	body := io.NewSectionReader(p, 0, p.Size()-4)
	switch {
	case bytes.HasPrefix(magic[:], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(narrow(body, n), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxKernel), zstd.WithDecoderMaxMemory(2*maxKernel))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case bytes.Equal(magic[:], []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, err := xz.NewReader(body)
		return io.NopCloser(r), err
	case bytes.HasPrefix(magic[:], []byte{0x1f, 0x8b}):
		return gzip.NewReader(io.NewSectionReader(p, 0, p.Size()))
	}
	return nil, fmt.Errorf("payload begins with % x: not zstd, xz or gzip", magic[:4])
}

// headerSize holds the setup header, with what is read of it.
const headerSize = 0x268

func checkHeader(b []byte) error {
	if len(b) < headerSize || !bytes.Equal(b[offMagic:offMagic+4], []byte("HdrS")) {
		return errors.New("not a bzImage: no HdrS at 0x202")
	}
	return nil
}
