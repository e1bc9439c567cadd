package pi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
)

// maxBootFile bounds one file of a boot partition, in bytes.
const maxBootFile = card.BootSize

// ErrNotBootable is a card on which the firmware finds nothing to start.
var ErrNotBootable = errors.New("pi: the firmware finds nothing to boot")

// booted is what the firmware has found.
type booted struct {
	partition         int
	kernel, initramfs string // files in the machine's directory
	cmdline           string
	esp               string // AAVMF: copy of the boot partition
}

// boot does what the bootloader of a Pi does: autoboot.txt names a partition, and
// from there, or from the boot.img that lies there, come kernel, initramfs and
// command line.
func boot(c Config) (*booted, error) {
	f, err := os.Open(c.Card)
	if err != nil {
		return nil, fmt.Errorf("pi: card: %w", err)
	}
	defer f.Close()
	b := &booted{}
	if b.partition, err = autoboot(f); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.Dir, "boot")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	if c.Firmware == AAVMF {
		b.esp = filepath.Join(dir, "esp.img")
		return b, copyPartition(f, b.partition, b.esp)
	}
	files, err := bootFiles(f, b.partition)
	if err != nil {
		return nil, err
	}
	if img, ok := files[card.BootImgFile]; ok {
		if files, err = insideImage(img); err != nil {
			return nil, err
		}
	}
	b.kernel, b.initramfs = filepath.Join(dir, "kernel"), filepath.Join(dir, "initramfs")
	for _, w := range []struct{ name, path string }{{card.KernelFile, b.kernel}, {card.InitramfsFile, b.initramfs}} {
		data, ok := files[w.name]
		if !ok {
			return nil, fmt.Errorf("%w: partition %d has no %s", ErrNotBootable, b.partition, w.name)
		}
		// QEMU unpacks a gzip'd kernel by itself.
		if err := os.WriteFile(w.path, data, 0o600); err != nil {
			return nil, fmt.Errorf("pi: %w", err)
		}
	}
	b.cmdline = strings.TrimSpace(string(files[card.CmdlineFile]))
	return b, nil
}

// Partition opens a partition of a card, by its number, as the firmware does.
func Partition(f *os.File, number int) (*io.SectionReader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("pi: card: %w", err)
	}
	table, _, err := gpt.Read(f, uint64(st.Size()/card.SectorSize))
	if err != nil {
		return nil, fmt.Errorf("pi: card: %w", err)
	}
	for _, p := range table.Partitions {
		if p.Number == number {
			return io.NewSectionReader(f, p.Offset(), p.Size()), nil
		}
	}
	return nil, fmt.Errorf("%w: no partition %d", ErrNotBootable, number)
}

// autoboot reads autoboot.txt on the first partition. Without the file that
// partition is the one to start.
func autoboot(f *os.File) (int, error) {
	conf, err := Partition(f, card.PartConf)
	if err != nil {
		return 0, err
	}
	fs, err := fat.Open(conf, conf.Size())
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotBootable, err)
	}
	text, err := fs.ReadFile(card.AutobootFile, card.AutobootSize)
	if err != nil {
		return card.PartConf, nil
	}
	a, err := card.ParseAutoboot(text)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotBootable, err)
	}
	return a.Boot(false), nil
}

// BootFiles returns all files of the boot partition with this number.
func BootFiles(path string, number int) (map[string][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("pi: card: %w", err)
	}
	defer f.Close()
	return bootFiles(f, number)
}

func bootFiles(f *os.File, number int) (map[string][]byte, error) {
	p, err := Partition(f, number)
	if err != nil {
		return nil, err
	}
	return fatFiles(p, p.Size())
}

func insideImage(img []byte) (map[string][]byte, error) {
	return fatFiles(bytes.NewReader(img), int64(len(img)))
}

func fatFiles(r io.ReaderAt, size int64) (map[string][]byte, error) {
	fs, err := fat.Open(r, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotBootable, err)
	}
	list, err := fs.List()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotBootable, err)
	}
	files := map[string][]byte{}
	for _, e := range list {
		if e.Dir {
			continue
		}
		if files[e.Path], err = fs.ReadFile(e.Path, maxBootFile); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotBootable, err)
		}
	}
	return files, nil
}

func copyPartition(f *os.File, number int, to string) error {
	p, err := Partition(f, number)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("pi: %w", err)
	}
	_, err = copySparse(out, p)
	return errors.Join(err, out.Truncate(p.Size()), out.Close())
}
