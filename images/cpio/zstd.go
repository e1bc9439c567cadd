package cpio

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Zstd compresses an archive into one zstd frame with a checksum. One worker
// and a fixed level make the same bytes on every machine. The window stays at
// 8 MiB: the kernel refuses larger ones (lib/decompress_unzstd.c).
func Zstd(data []byte) []byte {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(8<<20),
		zstd.WithEncoderCRC(true))
	if err != nil {
		panic(fmt.Sprintf("cpio: fixed zstd options are refused: %v", err)) // cannot depend on input
	}
	defer enc.Close()
	return enc.EncodeAll(data, nil)
}
