package card

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// ZymbitState is the directory in which the vendor's software keeps how this Pi and its
// module know each other (/var/lib/zymbit). pi-init needs it before it can open the
// encrypted volume, so a copy of it lies in the clear, as the vendor has it too. A
// module in production mode whose directory is lost can never be used again:
// therefore two copies, written in turn.
type ZymbitState struct {
	Files []ZymbitFileEntry `json:"files"` // by name
}

// ZymbitFileEntry is one regular file.
type ZymbitFileEntry struct {
	Name string      `json:"name"` // below the directory, with slashes
	Mode fs.FileMode `json:"mode"` // permission bits
	Data []byte      `json:"data"`
}

// Limits of a ZymbitState.
const (
	maxZymbitFiles = 64
	maxZymbitName  = 128
	zymbitHead     = 8 + 8 + 4 + 4 // magic, generation, length, checksum
	maxZymbitText  = ZymbitCopy - zymbitHead

	// maxZymbitGeneration leaves room for all writes that a card can take.
	maxZymbitGeneration = 1 << 62
)

var zymbitMagic = []byte("PCZYM1\n\x00")

// ReadZymbitState reads the vendor's directory. Anything but files and directories is
// refused. A directory that is not there, or holds no file, gives nil.
func ReadZymbitState(dir string) (*ZymbitState, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	s := &ZymbitState{}
	room := int64(maxZymbitText)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return refuse(ReasonZymbitState, "%s is no file", name)
		}
		if room -= st.Size(); room < 0 {
			return refuse(ReasonZymbitState, "more than %d bytes in %s", maxZymbitText, dir)
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, st.Size()))
		if err != nil {
			return err
		}
		s.Files = append(s.Files, ZymbitFileEntry{Name: name, Mode: st.Mode().Perm(), Data: data})
		return nil
	})
	if err != nil || len(s.Files) == 0 {
		return nil, err
	}
	slices.SortFunc(s.Files, func(a, b ZymbitFileEntry) int { return cmp.Compare(a.Name, b.Name) })
	return s, s.check()
}

func (s *ZymbitState) check() error {
	if len(s.Files) < 1 || len(s.Files) > maxZymbitFiles {
		return refuse(ReasonZymbitState, "%d files are not 1 to %d", len(s.Files), maxZymbitFiles)
	}
	for i, f := range s.Files {
		switch {
		case !fs.ValidPath(f.Name) || f.Name == "." || len(f.Name) > maxZymbitName || strings.ContainsFunc(f.Name, func(r rune) bool { return r <= ' ' || r > '~' }):
			return refuse(ReasonZymbitState, "%.140q is no name of a file", f.Name)
		case f.Mode&^fs.ModePerm != 0:
			return refuse(ReasonZymbitState, "%s has mode %v", f.Name, f.Mode)
		case i > 0 && s.Files[i-1].Name >= f.Name:
			return refuse(ReasonZymbitState, "%s stands there twice, or out of order", f.Name)
		}
	}
	return nil
}

// Equal compares what the directories hold; nil is a directory without files.
func (s *ZymbitState) Equal(o *ZymbitState) bool {
	if s == nil || o == nil {
		return s == o
	}
	return slices.EqualFunc(s.Files, o.Files, func(a, b ZymbitFileEntry) bool {
		return a.Name == b.Name && a.Mode == b.Mode && bytes.Equal(a.Data, b.Data)
	})
}

// Write makes dir hold exactly these files. What stood there is gone only when all of
// them are written beside it.
func (s *ZymbitState) Write(dir string) error {
	if err := s.check(); err != nil {
		return err
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(fresh)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range s.Files {
		if err := writeSynced(root, f); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	old := dir + ".old"
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	if err := os.Rename(dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(old), syncDir(filepath.Dir(dir)))
}

func writeSynced(root *os.Root, f ZymbitFileEntry) error {
	if err := root.MkdirAll(path.Dir(f.Name), 0o700); err != nil {
		return err
	}
	out, err := root.OpenFile(f.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(f.Data)
	return errors.Join(err, out.Chmod(f.Mode), out.Sync(), out.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// encodeZymbit is one copy: magic, generation (8 bytes), length (4), CRC-32C of what is
// before and behind it (4), JSON, zeros.
func encodeZymbit(generation uint64, s *ZymbitState) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if len(text) > maxZymbitText {
		return nil, refuse(ReasonZymbitState, "%d bytes are more than %d", len(text), maxZymbitText)
	}
	b := make([]byte, ZymbitCopy)
	copy(b, zymbitMagic)
	binary.LittleEndian.PutUint64(b[8:], generation)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(text)))
	copy(b[zymbitHead:], text)
	binary.LittleEndian.PutUint32(b[20:], zymbitSum(b[:20], text))
	return b, nil
}

func zymbitSum(head, text []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, text)
}

// decodeZymbit reads one copy. All zeros are no copy: nil, generation 0.
func decodeZymbit(b []byte) (generation uint64, s *ZymbitState, err error) {
	if len(b) != ZymbitCopy {
		return 0, nil, refuse(ReasonZymbitState, "%d bytes, a copy has %d", len(b), ZymbitCopy)
	}
	if len(bytes.TrimLeft(b[:zymbitHead], "\x00")) == 0 {
		return 0, nil, nil
	}
	n := binary.LittleEndian.Uint32(b[16:])
	if !bytes.Equal(b[:8], zymbitMagic) || n > maxZymbitText {
		return 0, nil, refuse(ReasonZymbitState, "no copy of it is here")
	}
	text := b[zymbitHead : zymbitHead+n]
	if zymbitSum(b[:20], text) != binary.LittleEndian.Uint32(b[20:]) {
		return 0, nil, refuse(ReasonZymbitState, "checksum does not agree")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	s = &ZymbitState{}
	if err := d.Decode(s); err != nil {
		return 0, nil, refuse(ReasonZymbitState, "%v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return 0, nil, refuse(ReasonZymbitState, "something follows the object")
	}
	if generation = binary.LittleEndian.Uint64(b[8:]); generation < 1 || generation > maxZymbitGeneration {
		return 0, nil, refuse(ReasonZymbitState, "generation %d", generation)
	}
	return generation, s, s.check()
}

// ZymbitImage is the content of ZymbitFile on a card that is flashed with s.
func ZymbitImage(s *ZymbitState) ([]byte, error) {
	b, err := encodeZymbit(1, s)
	if err != nil {
		return nil, err
	}
	return append(b, make([]byte, ZymbitSize-ZymbitCopy)...), nil
}

// ZymbitState reads the newer copy; nil where there is none, also on a card whose image
// had no place for it.
func (c *Conf) ZymbitState() (*ZymbitState, error) {
	s, _, _, err := c.zymbit()
	return s, err
}

// zymbit returns the newer copy with its generation and the number of the copy to write next.
func (c *Conf) zymbit() (s *ZymbitState, generation uint64, next int, err error) {
	if _, ok := c.files[ZymbitFile]; !ok {
		return nil, 0, -1, nil
	}
	var faults []error
	for i := range ZymbitSize / ZymbitCopy {
		b, err := c.read(ZymbitFile, int64(i)*ZymbitCopy, ZymbitCopy)
		if err != nil {
			return nil, 0, -1, err
		}
		g, found, err := decodeZymbit(b)
		switch {
		case err != nil:
			faults = append(faults, err)
		case found != nil && g >= generation:
			s, generation, next = found, g, 1-i
		}
	}
	if s == nil && len(faults) > 0 {
		return nil, 0, 0, faults[0]
	}
	return s, generation, next, nil
}

// SetZymbitState writes s over the older copy; an equal one is left as it is.
func (c *Conf) SetZymbitState(s *ZymbitState) error {
	now, generation, next, err := c.zymbit()
	if next < 0 {
		if err == nil {
			err = refuse(ReasonZymbitState, "this card's first partition has no place for it: flash it with a newer image")
		}
		return err
	}
	if err == nil && now.Equal(s) {
		return nil
	}
	b, err := encodeZymbit(generation+1, s)
	if err != nil {
		return err
	}
	return c.write(ZymbitFile, int64(next)*ZymbitCopy, b)
}
