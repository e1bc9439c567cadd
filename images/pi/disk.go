package pi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/card"
	"portcullis/images/gpt"
)

// release is what the slot state calls this release.
func (b *builder) release(root *rootInfo) (card.Release, error) {
	r := card.Release{Sequence: b.o.Sequence}
	h, err := hex.DecodeString(root.Verity.RootHash)
	if err != nil || len(h) != len(r.Root) {
		return r, fmt.Errorf("root hash %q is not 64 hex digits", root.Verity.RootHash)
	}
	copy(r.Root[:], h)
	return r, nil
}

// disk writes the card as it is flashed: PCCONF, boot slot A, an empty B, the
// seed, and zeros where first boot makes the encrypted partition. boot is the
// file of the boot partition, scratch a directory.
func (b *builder) disk(path, boot string, p *bootPartition, root *rootInfo, scratch string) (err error) {
	release, err := b.release(root)
	if err != nil {
		return err
	}
	conf, err := card.ConfFiles(release)
	if err != nil {
		return err
	}
	at := time.Unix(root.Epoch, 0)
	seed := append([]byte(b.o.Model+"\n"), p.digest[:]...)
	confFile, emptyFile := filepath.Join(scratch, "conf.fat"), filepath.Join(scratch, "empty.fat")
	if err := writeFAT(confFile, card.ConfSize, card.LabelConf, seed, at, conf); err != nil {
		return err
	}
	if err := writeFAT(emptyFile, card.BootSize, card.LabelBootB, seed, at, nil); err != nil {
		return err
	}
	st, err := os.Stat(root.image())
	if err != nil {
		return err
	}
	bootType := gpt.TypeBasicData
	if b.o.Model == card.ModelQEMU {
		bootType = gpt.TypeESP
	}
	parts := []struct {
		number int
		name   string
		kind   gpt.GUID
		size   int64
		file   string
	}{
		{card.PartConf, card.LabelConf, gpt.TypeBasicData, card.ConfSize, confFile},
		{card.PartBootA, card.LabelBootA, bootType, card.BootSize, boot},
		{card.PartBootB, card.LabelBootB, bootType, card.BootSize, emptyFile},
		{card.PartSeed, card.LabelSeed, gpt.TypeLinux, (st.Size() + card.Align - 1) &^ (card.Align - 1), root.image()},
		{card.PartCrypt, card.LabelCrypt, gpt.TypeLUKS, card.CryptHeader, ""},
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	t := &gpt.Table{DiskID: guid("disk", seed)}
	offset := int64(card.Align)
	for _, part := range parts {
		t.Partitions = append(t.Partitions, gpt.Partition{
			Number: part.number, Name: part.name, Type: part.kind, ID: guid(part.name, seed),
			First: uint64(offset / card.SectorSize), Last: uint64((offset+part.size)/card.SectorSize) - 1,
		})
		if part.file != "" {
			if err := copySparse(out, offset, part.file); err != nil {
				return err
			}
		}
		offset += part.size
	}
	size := offset + card.Align // the second partition table
	if err := out.Truncate(size); err != nil {
		return err
	}
	t.Sectors = uint64(size / card.SectorSize)
	if err := t.Write(out); err != nil {
		return err
	}
	return out.Close()
}

// guid makes a GUID that follows from what it names: same inputs, same bytes.
func guid(name string, seed []byte) gpt.GUID {
	h := sha256.Sum256(append([]byte("portcullis card "+name+"\n"), seed...))
	return gpt.FromBytes([16]byte(h[:16]))
}

// copySparse copies a file to an offset of out and leaves zeros out.
func copySparse(out *os.File, offset int64, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !zero(buf[:n]) {
			if _, err := out.WriteAt(buf[:n], offset); err != nil {
				return err
			}
		}
		offset += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
