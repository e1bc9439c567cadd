package debroot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	"portcullis/images/verity"
)

// Verity is what opens a root image.
type Verity struct {
	RootHash   string // hex
	Salt       string // hex
	DataBlocks uint64 // of verity.BlockSize; the hash tree begins behind them
}

// Words tell an init on the kernel's command line which root to open
// (rootfs/boot.ParseVerity reads them).
func (v *Verity) Words() []string {
	return []string{"roothash=" + v.RootHash, fmt.Sprintf("portcullis.verity=%s,%d,%d", v.Salt, v.DataBlocks, v.DataBlocks)}
}

// AppendVerity pads the squashfs to whole blocks and writes the hash tree
// behind it. The salt is made of the squashfs itself, so that equal images have
// equal root hashes and different ones share no digest.
func AppendVerity(img string) (*Verity, error) {
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := (st.Size() + verity.BlockSize - 1) / verity.BlockSize * verity.BlockSize
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	h := sha256.New()
	io.WriteString(h, "portcullis verity salt v1\n")
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return nil, err
	}
	salt := h.Sum(nil)
	tree, err := verity.Build(f, size, salt)
	if err != nil {
		return nil, fmt.Errorf("verity tree: %w", err)
	}
	if _, err := f.WriteAt(tree.Hashes, size); err != nil {
		return nil, err
	}
	return &Verity{RootHash: tree.Root(), Salt: hex.EncodeToString(salt), DataBlocks: tree.DataBlocks}, f.Close()
}
