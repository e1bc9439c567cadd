package update

import (
	"bytes"
	"context"
	"errors"
	"io"

	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/manifest"
)

// slot is the boot partition and the system of one slot, open for writing.
type slot struct {
	parts []part
	total int64
}

type part struct {
	artefact manifest.Artefact
	dev      Device
}

func openSlot(c Card, which card.Slot, m *bundle.Manifest) (*slot, error) {
	s := &slot{}
	for _, p := range []struct {
		name string
		open func(card.Slot) (Device, error)
	}{{bundle.Boot, c.Boot}, {bundle.Root, c.System}} {
		d, err := p.open(which)
		if err != nil {
			s.close()
			return nil, err
		}
		a := m.Artefact(p.name)
		s.parts, s.total = append(s.parts, part{a, d}), s.total+a.Size
		if d.Size() < a.Size {
			s.close()
			return nil, refuse(ReasonDevice, "%s has %d bytes, slot %s takes %d", a.Name, a.Size, which, d.Size())
		}
	}
	return s, nil
}

func (s *slot) close() {
	for _, p := range s.parts {
		p.dev.Close()
	}
}

// write puts the bundle's artefacts into the slot, and returns how many bytes
// were not there before.
func (s *slot) write(ctx context.Context, b *bundle.Reader, progress Progress) (written int64, err error) {
	var done int64
	old := make([]byte, manifest.ChunkSize)
	for _, p := range s.parts {
		err := b.Copy(p.artefact.Name, func(at int64, piece []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			// Most of a boot partition is empty, and a call after a power cut finds
			// its own work: cards wear by writing, not by reading.
			if n, err := p.dev.ReadAt(old[:len(piece)], at); n != len(piece) || !bytes.Equal(old[:n], piece) {
				if n != len(piece) && errors.Is(err, io.EOF) {
					return refuse(ReasonDevice, "%s ends at byte %d", p.artefact.Name, at+int64(n))
				}
				if _, err := p.dev.WriteAt(piece, at); err != nil {
					return refuse(ReasonDevice, "write %s at byte %d: %w", p.artefact.Name, at, err)
				}
				written += int64(len(piece))
			}
			done += int64(len(piece))
			report(progress, StageWrite, done, s.total)
			return nil
		})
		if err != nil {
			return written, errors.Join(err, b.Close())
		}
		if err := p.dev.Sync(); err != nil {
			return written, refuse(ReasonDevice, "%s: %w", p.artefact.Name, err)
		}
	}
	return written, b.Close()
}

// check reads the slot back from the medium and compares it with the manifest.
func (s *slot) check(ctx context.Context, m *bundle.Manifest, progress Progress) error {
	var done int64
	buf := make([]byte, manifest.ChunkSize)
	for _, p := range s.parts {
		if err := p.dev.Refresh(); err != nil {
			return refuse(ReasonDevice, "%s: %w", p.artefact.Name, err)
		}
		for i := range p.artefact.Chunks {
			if err := ctx.Err(); err != nil {
				return err
			}
			at, n := p.artefact.ChunkRange(i)
			if _, err := p.dev.ReadAt(buf[:n], at); err != nil && !errors.Is(err, io.EOF) {
				return refuse(ReasonReadBack, "%s at byte %d: %w", p.artefact.Name, at, err)
			}
			if err := p.artefact.CheckChunk(i, buf[:n]); err != nil {
				return refuse(ReasonReadBack, "the card gives other bytes than were written: %w", err)
			}
			done += n
			report(progress, StageCheck, done, s.total)
		}
	}
	return nil
}

func report(f Progress, stage string, done, total int64) {
	if f != nil {
		f(stage, done, total)
	}
}
