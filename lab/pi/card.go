package pi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"portcullis/images/card"
	"portcullis/images/fat"
)

// CardSize is the card of a lab in bytes: small, and a power of two as QEMU's SD
// controller wants it.
const CardSize = 4 << 30

// Card is an SD card in a file and the state of the TPM that belongs to it.
type Card struct {
	Image string // raw, sparse
	TPM   string // directory; empty or missing: a new chip
}

// InDir names a card in dir; nothing is made.
func InDir(dir string) Card {
	return Card{Image: filepath.Join(dir, "card.img"), TPM: filepath.Join(dir, "tpm")}
}

// NewCard writes a built image (pi.img, or pi.img.zst) to a new card of size
// bytes (0 = CardSize) in dir, as flashing it would, with a chip that is new too.
func NewCard(image, dir string, size int64) (c Card, err error) {
	if size == 0 {
		size = CardSize
	}
	c = InDir(dir)
	in, err := os.Open(image)
	if err != nil {
		return c, fmt.Errorf("pi: image: %w", err)
	}
	defer in.Close()
	var r io.Reader = in
	if strings.HasSuffix(image, ".zst") {
		d, err := zstd.NewReader(in)
		if err != nil {
			return c, fmt.Errorf("pi: image: %w", err)
		}
		defer d.Close()
		r = d
	}
	out, err := os.OpenFile(c.Image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return c, fmt.Errorf("pi: card: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	n, err := copySparse(out, r)
	if err != nil {
		return c, fmt.Errorf("pi: card: %w", err)
	}
	if n > size {
		return c, fmt.Errorf("pi: an image of %d bytes does not fit on a card of %d", n, size)
	}
	return c, out.Truncate(size)
}

// zeros is compared with: a block that is all zeros becomes a hole.
var zeros [64 << 10]byte

// copySparse writes r to the start of out with holes for zeros; n is its length.
func copySparse(out *os.File, r io.Reader) (n int64, err error) {
	buf := make([]byte, len(zeros))
	for {
		m, err := io.ReadFull(r, buf)
		if !bytes.Equal(buf[:m], zeros[:m]) {
			if _, err := out.WriteAt(buf[:m], n); err != nil {
				return n, err
			}
		}
		n += int64(m)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Copy makes a copy of the card and of its chip's state in dir: two Pis with the
// same secrets, which only a test can have. The machine must be off.
func (c Card) Copy(dir string) (Card, error) {
	to := InDir(dir)
	if err := copyFile(c.Image, to.Image); err != nil {
		return to, fmt.Errorf("pi: copying the card: %w", err)
	}
	if err := os.RemoveAll(to.TPM); err != nil {
		return to, fmt.Errorf("pi: %w", err)
	}
	if _, err := os.Stat(c.TPM); errors.Is(err, fs.ErrNotExist) {
		return to, nil
	}
	if err := os.CopyFS(to.TPM, os.DirFS(c.TPM)); err != nil {
		return to, fmt.Errorf("pi: copying the TPM's state: %w", err)
	}
	// CopyFS makes everything readable by all.
	return to, os.Chmod(to.TPM, 0o700)
}

// copyFile copies the data of a sparse file and leaves its holes.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for off := int64(0); off < st.Size(); {
		start, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := in.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, end-start); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// Seed puts the operator's settings on the card, as `portcullis flash --seed` does.
func (c Card) Seed(text string) error {
	if len(text) > card.SeedSize {
		return fmt.Errorf("pi: settings of %d bytes are more than %d", len(text), card.SeedSize)
	}
	return c.overwrite(card.SeedFile, []byte(text+strings.Repeat("\n", card.SeedSize-len(text))))
}

// Zymbit puts a module's state on the card, as `portcullis flash --zymbit-state` does.
func (c Card) Zymbit(s *card.ZymbitState) error {
	b, err := card.ZymbitImage(s)
	if err != nil {
		return err
	}
	return c.overwrite(card.ZymbitFile, b)
}

// Conf reads a file of the first partition, for instance card.EnrolFile.
func (c Card) Conf(name string) ([]byte, error) {
	f, err := os.Open(c.Image)
	if err != nil {
		return nil, fmt.Errorf("pi: card: %w", err)
	}
	defer f.Close()
	p, err := Partition(f, card.PartConf)
	if err != nil {
		return nil, err
	}
	volume, err := fat.Open(p, p.Size())
	if err != nil {
		return nil, fmt.Errorf("pi: card: %w", err)
	}
	return volume.ReadFile(name, card.SeedSize)
}

// overwrite replaces the bytes of a file with a fixed place on the first partition.
func (c Card) overwrite(name string, data []byte) (err error) {
	f, err := os.OpenFile(c.Image, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("pi: card: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p, err := Partition(f, card.PartConf)
	if err != nil {
		return err
	}
	volume, err := fat.Open(p, p.Size())
	if err != nil {
		return fmt.Errorf("pi: card: %w", err)
	}
	offset, size, err := volume.Extent(name)
	if err != nil {
		return fmt.Errorf("pi: card: %w", err)
	}
	if int64(len(data)) != size {
		return fmt.Errorf("pi: %s has %d bytes on the card, not %d", name, size, len(data))
	}
	_, base, _ := p.Outer()
	_, err = f.WriteAt(data, base+offset)
	return err
}
