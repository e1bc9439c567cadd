package escrow

import (
	"bytes"
	"errors"
	"io"
	"os"

	"filippo.io/age/armor"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
)

// Load returns the escrow file that path is or holds: ESCROW.AGE itself, a card or
// its image, or the card's configuration partition.
func Load(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if size <= card.EscrowSize {
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
			return nil, err
		}
		if len(bytes.TrimRight(b, "\n")) > 0 && !bytes.HasPrefix(b, []byte(armor.Header)) {
			return nil, refuse(ReasonFormat, "%s is neither %s nor a card", path, card.EscrowFile)
		}
		return b, nil
	}
	return FromCard(f, size)
}

// FromCard reads the escrow file of a card, or of its configuration partition alone,
// size bytes long.
func FromCard(r io.ReaderAt, size int64) ([]byte, error) {
	conf, confSize := r, size
	table, _, err := gpt.Read(r, uint64(size/gpt.SectorSize))
	if err == nil {
		p, err := table.ByName(card.LabelConf)
		if err != nil {
			return nil, &Error{ReasonFormat, err}
		}
		conf, confSize = io.NewSectionReader(r, p.Offset(), p.Size()), p.Size()
	}
	fs, errFAT := fat.Open(conf, confSize)
	if errFAT != nil {
		return nil, &Error{ReasonFormat, errors.Join(err, errFAT)}
	}
	b, err := fs.ReadFile(card.EscrowFile, card.EscrowSize)
	if err != nil {
		return nil, &Error{ReasonFormat, err}
	}
	return b, nil
}
