package piinit

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// pinFile keeps the settings that are in force, in the encrypted data volume. The
// seed itself lies on a partition that anybody who holds the card for a minute can
// rewrite, and it says whose images the PC is given.
const pinFile = "settings.yml"

// pinned returns the settings in force below root. Those of the card (nil: none that
// are valid) are taken without a question only where none were ever in force; others
// than the kept ones only where accept says yes. changed says that the card holds
// other settings than those returned.
func pinned(root string, offered []byte, accept func() bool) (text []byte, changed bool, err error) {
	dir := filepath.Join(root, dataDir)
	kept, err := boot.ReadBeneath(dir, pinFile, card.SeedSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kept = nil
	case err != nil:
		return nil, false, boot.Failf(ReasonSettings, "%w", err)
	}
	switch {
	case bytes.Equal(kept, offered):
		return kept, false, nil
	case kept != nil && (offered == nil || !accept()):
		return kept, true, nil
	}
	if err := replaceFile(filepath.Join(dir, pinFile), offered, 0o600); err != nil {
		return nil, false, boot.Failf(ReasonSettings, "%w", err)
	}
	return offered, false, nil
}

// replaceFile leaves the old content or the new one, whenever the power fails. A link
// of that name is replaced and not followed.
func replaceFile(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".settings-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// settingsInForce returns the settings of this boot, nil where there are none.
func settingsInForce(ctx context.Context, root string, r *Result, log *boot.StageLog) (*card.Seed, error) {
	var offered []byte
	if r.Seed != nil {
		offered = r.SeedText
	}
	text, changed, err := pinned(root, offered, func() bool { return r.Accept(ctx) })
	if err != nil {
		return nil, err
	}
	if changed {
		log.Note("settings-changed", "detail", "the settings on the card are not those in force and are not used")
	}
	if text == nil {
		return nil, nil
	}
	s, err := card.ParseSeed(pinFile, text)
	if err != nil {
		// Of a release that knew more, or fewer, keys.
		log.Note("seed", "problem", err)
		return nil, nil
	}
	return s, nil
}

// acceptPrompt is shown with the seconds left.
const acceptPrompt = "portcullis: the settings on the card were changed: type the recovery key to accept them (%d s left): "

// accept asks for the recovery key: who knows it can open the card anyway. A word
// alone would be known to whoever changed the settings and stands before the Pi.
func (b *Boot) accept(ctx context.Context) bool {
	if b.header == nil {
		return false
	}
	slots, _ := recoverySlots(b.header)
	if len(slots) == 0 {
		return false
	}
	b.Allow(b.Times.Enrol + stepLimit)
	defer b.Allow(stepLimit)
	line, err := b.Console.Ask(ctx, acceptPrompt, b.Times.Enrol, true)
	if err != nil {
		return false
	}
	defer clear(line)
	key, err := luks2.ParseRecoveryKey(line)
	if err != nil {
		b.Log.Note("settings-changed", "problem", err)
		return false
	}
	defer key.Wipe()
	volumeKey, _, err := b.header.Unlock(b.crypt, key.Passphrase(), slots...)
	clear(volumeKey)
	if err != nil {
		b.Log.Note("settings-changed", "problem", err)
	}
	return err == nil
}
