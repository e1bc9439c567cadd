package piinit

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"

	"portcullis/images/card"
	"portcullis/rootfs/boot"
)

// enrolFile keeps first boot's record in the encrypted data volume: the one on the card's
// plain part can be rewritten by whoever holds the card for a minute.
const enrolFile = "enrolment.json"

// remember keeps first boot's record below root, from the first boot that gets so far,
// and returns it; nil where there is none that can be read, as on a card that was
// enrolled before there was such a file.
func remember(root string, onCard []byte) (*card.Enrolment, error) {
	dir := filepath.Join(root, dataDir)
	kept, err := boot.ReadBeneath(dir, enrolFile, card.EnrolSize)
	if errors.Is(err, fs.ErrNotExist) {
		kept = bytes.TrimRight(onCard, "\n")
		if _, err := card.ParseEnrolment(kept); err != nil {
			return nil, nil
		}
		if err := replaceFile(filepath.Join(dir, enrolFile), kept, 0o644); err != nil {
			return nil, boot.Failf(ReasonSettings, "%w", err)
		}
	} else if err != nil {
		return nil, boot.Failf(ReasonSettings, "%w", err)
	}
	return card.ParseEnrolment(kept)
}
