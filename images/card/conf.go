package card

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"portcullis/images/fat"
)

// Device is a partition: read and written in place. Where it has a method
// Sync() error, that is called after every write.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// Conf is the open configuration partition. Its files were allocated when the
// card was made; Conf only rewrites their sectors, so that no power cut can
// damage the file system. It is not safe for concurrent use.
type Conf struct {
	rw    Device
	files map[string]extent
}

type extent struct{ offset, size int64 }

// confFiles are the files with their fixed sizes, in bytes.
var confFiles = map[string]int64{
	AutobootFile: AutobootSize, StateFile: StateSize, SeedFile: SeedSize, EscrowFile: EscrowSize, EnrolFile: EnrolSize,
	ZymbitFile: ZymbitSize,
}

// ConfFiles returns what stands on the configuration partition of a fresh card.
func ConfFiles(r Release) (map[string][]byte, error) {
	state, err := StateImage(r)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		AutobootFile: EncodeAutoboot(SlotA), StateFile: state,
		SeedFile: pad(nil, SeedSize), EscrowFile: pad(nil, EscrowSize), EnrolFile: pad(nil, EnrolSize),
		ZymbitFile: make([]byte, ZymbitSize),
	}, nil
}

// OpenConf finds the files on a partition of size bytes. Nothing is written.
func OpenConf(rw Device, size int64) (*Conf, error) {
	fs, err := fat.Open(rw, size)
	if err != nil {
		return nil, refuse(ReasonConfUnreadable, "%v", err)
	}
	c := &Conf{rw: rw, files: map[string]extent{}}
	for name, want := range confFiles {
		at, n, err := fs.Extent(name)
		switch {
		case name == ZymbitFile && notFound(err):
			continue // a card of an older image
		case err != nil:
			return nil, refuse(ReasonConfUnreadable, "%s: %v", name, err)
		case n != want:
			return nil, refuse(ReasonConfUnreadable, "%s has %d bytes, not %d", name, n, want)
		case at%SectorSize != 0 || at < 0 || at+n > size:
			return nil, refuse(ReasonConfUnreadable, "%s lies at byte %d", name, at)
		}
		c.files[name] = extent{at, n}
	}
	return c, nil
}

func notFound(err error) bool {
	var e *fat.Error
	return errors.As(err, &e) && e.Reason == fat.ReasonNotFound
}

// State reads the newest valid copy of the slot state.
func (c *Conf) State() (State, error) {
	s, _, err := c.state()
	return s, err
}

func (c *Conf) state() (State, int, error) {
	first, err := c.read(StateFile, 0, SectorSize)
	if err != nil {
		return State{}, 0, err
	}
	second, err := c.read(StateFile, StateCopy, SectorSize)
	if err != nil {
		return State{}, 0, err
	}
	return newestState(first, second)
}

// SetState writes s, one generation on, over the older copy. A power cut leaves
// either the old state or the new one.
func (c *Conf) SetState(s State) error {
	now, next, err := c.state()
	if err != nil {
		return err
	}
	s.Generation = now.Generation + 1
	b, err := s.Encode()
	if err != nil {
		return err
	}
	return c.write(StateFile, int64(next)*StateCopy, b)
}

// Autoboot reads what the firmware starts.
func (c *Conf) Autoboot() (Autoboot, error) {
	b, err := c.read(AutobootFile, 0, AutobootSize)
	if err != nil {
		return Autoboot{}, err
	}
	return ParseAutoboot(b)
}

// SetAutoboot makes the firmware start slot. Nothing is written where it does already.
func (c *Conf) SetAutoboot(slot Slot) error {
	want := EncodeAutoboot(slot)
	got, err := c.read(AutobootFile, 0, AutobootSize)
	if err != nil {
		return err
	}
	if bytes.Equal(got, want) {
		return nil
	}
	return c.write(AutobootFile, 0, want)
}

// Try puts the release in t, complete in its slot, on trial: the next start is
// its first. The state is written before the firmware is told, because a
// release that the state does not know is never started on purpose.
func (c *Conf) Try(t Installed) error {
	s, err := c.State()
	if err != nil {
		return err
	}
	if s, err = s.WithTrial(t); err != nil {
		return err
	}
	if err := c.SetState(s); err != nil {
		return err
	}
	return c.SetAutoboot(t.Slot)
}

// Drop takes a trial back: first the firmware is told, then the state, so that
// at no moment a release is started whose trial is forgotten. Without a trial it
// makes sure that the firmware starts the active slot.
func (c *Conf) Drop(reason string) error {
	s, err := c.State()
	if err != nil {
		return err
	}
	if err := c.SetAutoboot(s.Active.Slot); err != nil {
		return err
	}
	if s.Trial == nil {
		return nil
	}
	return c.SetState(s.Dropped(reason))
}

// Commit makes the trial the active release: one sector. The firmware starts it
// already. It returns the state that is now on the card.
func (c *Conf) Commit() (State, error) {
	s, err := c.State()
	if err != nil {
		return State{}, err
	}
	if s.Trial == nil {
		return s, nil
	}
	if err := c.SetState(s.Committed()); err != nil {
		return State{}, err
	}
	return c.State()
}

// SeedText returns the operator's settings as they stand there, nil where there are none.
func (c *Conf) SeedText() ([]byte, error) {
	b, err := c.read(SeedFile, 0, SeedSize)
	if err != nil || BlankSeed(b) {
		return nil, err
	}
	return b, nil
}

// Seed returns the operator's settings, nil where there are none. Wrong ones are
// refused with ReasonSeedInvalid.
func (c *Conf) Seed() (*Seed, error) {
	b, err := c.SeedText()
	if b == nil {
		return nil, err
	}
	s, err := ParseSeed(SeedFile, b)
	if err != nil {
		return nil, refuse(ReasonSeedInvalid, "%v", err)
	}
	return s, nil
}

// WriteEscrow stores the recovery key, encrypted to the operator; an equal one is left as it is.
func (c *Conf) WriteEscrow(b []byte) error { return c.replace(EscrowFile, b) }

// Escrow returns the encrypted recovery key, nil where there is none.
func (c *Conf) Escrow() ([]byte, error) { return c.content(EscrowFile) }

// WriteEnrol stores the public enrolment record; an equal one is left as it is.
func (c *Conf) WriteEnrol(b []byte) error { return c.replace(EnrolFile, b) }

// Enrol returns the public enrolment record, nil where there is none.
func (c *Conf) Enrol() ([]byte, error) { return c.content(EnrolFile) }

func (c *Conf) content(name string) ([]byte, error) {
	b, err := c.read(name, 0, c.files[name].size)
	if b = bytes.TrimRight(b, "\n"); err != nil || len(b) == 0 {
		return nil, err
	}
	return append(b, '\n'), nil
}

func (c *Conf) replace(name string, b []byte) error {
	size := c.files[name].size
	if int64(len(b)) > size {
		return fmt.Errorf("%s: %d bytes do not fit into %d", name, len(b), size)
	}
	b = pad(b, int(size))
	now, err := c.read(name, 0, size)
	if err != nil {
		return err
	}
	if bytes.Equal(now, b) {
		return nil
	}
	return c.write(name, 0, b)
}

func (c *Conf) read(name string, at, n int64) ([]byte, error) {
	b := make([]byte, n)
	if got, err := c.rw.ReadAt(b, c.files[name].offset+at); got != len(b) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

func (c *Conf) write(name string, at int64, b []byte) error {
	if _, err := c.rw.WriteAt(b, c.files[name].offset+at); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if s, ok := c.rw.(interface{ Sync() error }); ok {
		if err := s.Sync(); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}
