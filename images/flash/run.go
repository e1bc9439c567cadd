package flash

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"portcullis/images/blockmap"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
)

// Phases of a run.
const (
	PhaseWrite  = "write"
	PhaseVerify = "verify"
)

// Options are what Run works with.
type Options struct {
	Image   *Image
	Target  Target
	Journal *Journal // nil: every range is written
	// Seed is the whole content of the settings' file, as card.SeedImage makes it; nil for none.
	Seed []byte
	// Zymbit is the whole content of card.ZymbitFile, as card.ZymbitImage makes it; nil for none.
	Zymbit []byte
	// Report is told how many bytes of the image a phase has passed; nil is fine.
	Report func(phase string, done, total int64)
}

// Result tells what a run did, in bytes.
type Result struct {
	Written  int64 `json:"written"`   // to the device
	Kept     int64 `json:"kept"`      // written by an interrupted run and found whole
	Zeroed   int64 `json:"zeroed"`    // were not zero and had to be
	Verified int64 `json:"verified"`  // read back from the device
	Seeded   bool  `json:"seeded"`    // the operator's settings are on the card
	Ranges   int   `json:"ranges"`    // of the image
	ImageLen int64 `json:"image_len"` // the image's whole size
}

// run is one run under way.
type run struct {
	o     Options
	r     Result
	first []byte // the range at 0, which is written last; nil when that is zero
	zeros []byte
	check []byte // what is read back
	tail  int64  // bytes of the device behind the image that are probed and made zero
}

// Run writes the image, reads everything back and puts the settings in. The
// journal is removed when all is done, and when the device turns out to lie.
// The caller has checked the disk.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Seed != nil && len(o.Seed) != card.SeedSize {
		return Result{}, refuse(ReasonSettings, "the settings have %d bytes instead of %d", len(o.Seed), card.SeedSize)
	}
	if o.Zymbit != nil && len(o.Zymbit) != card.ZymbitSize {
		return Result{}, refuse(ReasonSettings, "the module's state has %d bytes instead of %d", len(o.Zymbit), card.ZymbitSize)
	}
	if o.Report == nil {
		o.Report = func(string, int64, int64) {}
	}
	m := o.Image.Map
	if o.Target.Size() < m.Size {
		return Result{}, refuse(ReasonTooSmall, "the device has %d bytes, the image %d", o.Target.Size(), m.Size)
	}
	w := &run{
		o: o, zeros: buffer(blockmap.MaxRange), check: buffer(blockmap.MaxRange),
		r:    Result{Ranges: len(m.Ranges), ImageLen: m.Size},
		tail: min(1<<20, (o.Target.Size()-m.Size)/card.SectorSize*card.SectorSize),
	}
	for _, step := range []func(context.Context) error{w.write, w.verify, w.finish, w.seed} {
		if err := step(ctx); err != nil {
			if r := Reason(err); r == ReasonVerify || r == ReasonLies {
				_ = o.Journal.Remove() // what it says is not true
			}
			return w.r, err
		}
	}
	return w.r, o.Journal.Remove()
}

// write puts everything but the first range on the device.
func (w *run) write(ctx context.Context) error {
	m := w.o.Image.Map
	if err := w.put(w.zeros[:min(1<<20, m.Size)], 0); err != nil {
		return err
	}
	done := int64(0)
	err := w.o.Image.unpack(ctx, func(p piece) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.piece(p); err != nil {
			return err
		}
		done += p.length
		w.o.Report(PhaseWrite, done, m.Size)
		return nil
	})
	if err != nil {
		return err
	}
	return w.sync()
}

func (w *run) piece(p piece) error {
	switch {
	case p.index < 0:
		return w.zero(p.start, p.length)
	case p.start == 0:
		w.first = append(buffer(blockmap.MaxRange)[:0], p.data...)
		// A range may be longer than the MiB that was made zero; all of it waits.
		return nil
	case w.o.Journal.has(p.index):
		same, err := w.same(p.start, p.length, w.o.Image.Map.Ranges[p.index].SHA256)
		if err != nil {
			return err
		}
		if same {
			w.r.Kept += p.length
			return nil
		}
	}
	if err := w.put(p.data, p.start); err != nil {
		return err
	}
	w.r.Written += p.length
	return w.o.Journal.add(p.index)
}

// zero makes a part of the device zero where it is not yet.
func (w *run) zero(start, length int64) error {
	if err := w.back(w.check[:length], start); err != nil {
		return err
	}
	if blockmap.Zero(w.check[:length]) {
		return nil
	}
	w.r.Zeroed += length
	return w.put(w.zeros[:length], start)
}

// verify reads everything back that was written so far.
func (w *run) verify(ctx context.Context) error {
	m := w.o.Image.Map
	probe := buffer(int(w.tail))
	if _, err := rand.Read(probe); err != nil {
		return err
	}
	end := w.o.Target.Size() / card.SectorSize * card.SectorSize
	if w.tail > 0 {
		if err := w.put(probe, end-w.tail); err != nil {
			return err
		}
		if err := w.sync(); err != nil {
			return err
		}
	}
	done, wrong, first := int64(0), 0, int64(0)
	for _, p := range pieces(m) {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The range at 0 is not there yet.
		if p.start > 0 || w.first == nil {
			if same, err := w.like(p); err != nil {
				return err
			} else if !same {
				if wrong++; wrong == 1 {
					first = p.start
				}
			}
			w.r.Verified += p.length
		}
		done += p.length
		w.o.Report(PhaseVerify, done, m.Size)
	}
	if wrong > 0 {
		return refuse(ReasonVerify, "%d parts of the image come back different, the first at byte %d: the device is worn out or smaller than it says", wrong, first)
	}
	if w.tail > 0 {
		if same, err := w.same(end-w.tail, w.tail, sha256.Sum256(probe)); err != nil {
			return err
		} else if !same {
			return refuse(ReasonLies, "the last %d bytes of %s do not keep what is written", w.tail, Bytes(end))
		}
		return w.exact(w.zeros[:w.tail], end-w.tail)
	}
	return nil
}

// finish writes the range with the partition table: now the card is one.
func (w *run) finish(context.Context) error {
	if w.first == nil {
		return nil
	}
	w.r.Written += int64(len(w.first))
	return w.exact(w.first, 0)
}

// seed puts the settings, and a module's state, into their places in the PCCONF partition.
func (w *run) seed(context.Context) error {
	if w.o.Zymbit != nil {
		if err := w.file(card.ZymbitFile, w.o.Zymbit); err != nil {
			return err
		}
	}
	if w.o.Seed == nil {
		return nil
	}
	w.r.Seeded = true
	return w.file(card.SeedFile, w.o.Seed)
}

func (w *run) file(name string, content []byte) error {
	at, err := fileOffset(w, w.o.Image.Map.Size, name, int64(len(content)))
	if err != nil {
		return err
	}
	b := buffer(len(content))
	copy(b, content)
	return w.exact(b, at)
}

// reader is a device, or an image in memory.
type reader interface {
	ReadAt([]byte, int64) (int, error)
}

// SeedOffset is where the settings' file begins on a card with an image of size bytes.
func SeedOffset(r reader, size int64) (int64, error) {
	return fileOffset(r, size, card.SeedFile, card.SeedSize)
}

// fileOffset is where a file of length bytes begins.
func fileOffset(r reader, size int64, name string, length int64) (int64, error) {
	table, _, err := gpt.Read(r, uint64(size/card.SectorSize))
	if err != nil {
		return 0, refuse(ReasonSettings, "%v", err)
	}
	conf, err := table.ByName(card.LabelConf)
	if err != nil {
		return 0, refuse(ReasonSettings, "%v", err)
	}
	fs, err := fat.Open(section{r, conf.Offset(), conf.Size()}, conf.Size())
	if err != nil {
		return 0, refuse(ReasonSettings, "%s: %v", card.LabelConf, err)
	}
	off, n, err := fs.Extent(name)
	if err != nil || n != length {
		return 0, refuse(ReasonSettings, "%s has %d bytes: %v", name, n, err)
	}
	return conf.Offset() + off, nil
}

// section is a partition of a device.
type section struct {
	r interface {
		ReadAt([]byte, int64) (int, error)
	}
	off, size int64
}

func (s section) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > s.size {
		return 0, fmt.Errorf("%d bytes at %d are outside the partition", len(b), off)
	}
	return s.r.ReadAt(b, s.off+off)
}

// ReadAt reads any bytes of the device, for tables and directories.
func (w *run) ReadAt(b []byte, off int64) (int, error) {
	start := off / alignment * alignment
	end := min((off+int64(len(b))+alignment-1)/alignment*alignment, w.o.Target.Size())
	part := buffer(int(end - start))
	if err := w.back(part, start); err != nil {
		return 0, err
	}
	return copy(b, part[off-start:]), nil
}

// exact writes b and reads it back.
func (w *run) exact(b []byte, off int64) error {
	if err := w.put(b, off); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	back := buffer(len(b))
	if err := w.back(back, off); err != nil {
		return err
	}
	w.r.Verified += int64(len(b))
	if !bytes.Equal(back, b) {
		return refuse(ReasonVerify, "%d bytes at %d come back different", len(b), off)
	}
	return nil
}

// like tells whether the device holds a piece.
func (w *run) like(p piece) (bool, error) {
	if p.index >= 0 {
		return w.same(p.start, p.length, w.o.Image.Map.Ranges[p.index].SHA256)
	}
	err := w.back(w.check[:p.length], p.start)
	return err == nil && blockmap.Zero(w.check[:p.length]), err
}

func (w *run) same(start, length int64, want blockmap.Digest) (bool, error) {
	err := w.back(w.check[:length], start)
	return err == nil && sha256.Sum256(w.check[:length]) == want, err
}

func (w *run) back(b []byte, off int64) error {
	if err := w.o.Target.ReadBack(b, off); err != nil {
		return refuse(ReasonIO, "read: %v", err)
	}
	return nil
}

func (w *run) put(b []byte, off int64) error {
	if _, err := w.o.Target.WriteAt(b, off); err != nil {
		return refuse(ReasonIO, "write %d bytes at %d: %v", len(b), off, err)
	}
	return nil
}

func (w *run) sync() error {
	if err := w.o.Target.Sync(); err != nil {
		return refuse(ReasonIO, "sync: %v", err)
	}
	return nil
}
