// Package luks2 writes LUKS2 volumes and reads them strictly: format, keyslots,
// tokens, both copies of the header, repair and erase. A Header in memory is what was
// checked: Unlock takes nothing from the device but a keyslot's material, and the
// device that rootfs/boot maps takes offset, sectors and cipher from here, so that a
// card that shows another header at a second reading is not believed.
//
// It follows the LUKS2 on-disk format specification of the cryptsetup project,
// as far as this project needs it: one data segment, aes-xts-plain64, no
// integrity, no detached header. What cryptsetup can make beyond that is refused
// with a reason, never half understood.
//
// The package needs nothing of the kernel: a regular file does. The image builder,
// pi-init, the updater, the root commands and the lab call it. Volume keys and
// passphrases are byte slices that their owner wipes with clear.
package luks2

import "io"

// Device is what holds a volume: a block device or a file. *os.File is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Sizes and limits of the format, in bytes unless said otherwise.
const (
	// VolumeKeySize is the AES-256-XTS key of the payload: two AES keys.
	VolumeKeySize = 64
	// HeaderSize is one copy of the header as Format makes it: 4 KiB binary, 12 KiB JSON.
	HeaderSize = 16 << 10
	// MaxHeaderSize is the largest copy the format knows.
	MaxHeaderSize = 4 << 20
	// MaxKeyslotsSize is the largest area for keyslots.
	MaxKeyslotsSize = 128 << 20
	// MaxSlots counts keyslots, and tokens as well: numbers 0 to 31.
	MaxSlots = 32
	// MaxPassphrase is the longest passphrase of a keyslot.
	MaxPassphrase = 512

	binarySize = 4096 // binary part of a copy
	areaAlign  = 4096 // alignment of keyslot areas
	ivSector   = 512  // unit of the plain64 initialisation vector, whatever the sector size
	stripes    = 4000 // of the anti-forensic splitter; the only number the format allows
	cipherName = "aes-xts-plain64"
)
