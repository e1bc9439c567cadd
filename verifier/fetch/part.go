package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"portcullis/internal/atomicfile"
)

// partVersion of the note beside a part.
const partVersion = 1

// note says what a part is a part of. It is written before the first byte.
type note struct {
	Version   int    `json:"version"`
	URL       string `json:"url"`
	Validator string `json:"validator"` // what If-Range takes: a strong ETag or a date; "" = the part cannot be continued
	Total     int64  `json:"total"`     // bytes of the whole; -1 = the server did not say
}

// part is a file that is being fetched. Its bytes are hashed as they come, where a
// digest is to be compared.
type part struct {
	file   *os.File
	path   string
	size   int64
	note   note
	digest hash.Hash // nil where the file has no digest of its own
}

// openPart opens what a former attempt left of url, or begins. What cannot be
// continued is thrown away.
func openPart(path, url string, hashed bool) (*part, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, storage(err)
	}
	p := &part{file: f, path: path}
	if hashed {
		p.digest = sha256.New()
	}
	if err := p.remember(url); err != nil {
		return nil, errors.Join(storage(err), f.Close())
	}
	return p, nil
}

func (p *part) remember(url string) error {
	b, err := os.ReadFile(p.path + ".json")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var n note
	if err != nil || json.Unmarshal(b, &n) != nil || n.Version != partVersion || n.URL != url {
		return p.restart(note{Version: partVersion, URL: url, Total: -1})
	}
	p.note = n
	if p.digest == nil {
		p.size, err = p.file.Seek(0, io.SeekEnd)
		return err
	}
	p.size, err = io.Copy(p.digest, p.file)
	return err
}

// restart forgets every byte; n is what comes instead.
func (p *part) restart(n note) error {
	if err := p.file.Truncate(0); err != nil {
		return storage(err)
	}
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return storage(err)
	}
	p.size = 0
	if p.digest != nil {
		p.digest.Reset()
	}
	return p.keep(n)
}

// keep writes the note. It is in place before a byte of what it speaks of.
func (p *part) keep(n note) error {
	if n == p.note {
		return nil
	}
	b, err := json.Marshal(n)
	if err == nil {
		err = atomicfile.Replace(p.path+".json", b, true)
	}
	if err != nil {
		return storage(err)
	}
	p.note = n
	return nil
}

func (p *part) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	if p.digest != nil {
		p.digest.Write(b[:n])
	}
	p.size += int64(n)
	if err != nil {
		return n, storage(err)
	}
	return n, nil
}

// sum is the digest of what is there.
func (p *part) sum() string { return "sha256:" + hex.EncodeToString(p.digest.Sum(nil)) }

// finish gives the whole file its name, on the disk.
func (p *part) finish(path string) error {
	err := errors.Join(p.file.Sync(), p.file.Close())
	if err == nil {
		err = os.Rename(p.path, path)
	}
	if err == nil {
		err = os.Remove(p.path + ".json")
	}
	return storage(err)
}

func (p *part) Close() error { return p.file.Close() }

// discard removes the part.
func (p *part) discard() error {
	err := p.file.Close()
	for _, name := range []string{p.path, p.path + ".json"} {
		if rerr := os.Remove(name); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return storage(err)
}

func storage(err error) error {
	if err == nil || Reason(err) != "" {
		return err
	}
	return refuse(ReasonStorage, "%v", err)
}

// Quarantine is the directory in which things are kept until they are looked at. One
// import uses it at a time.
type Quarantine struct {
	dir  string
	lock *os.File
}

// OpenQuarantine opens dir and makes it where it is not there, mode 0700.
func OpenQuarantine(dir string) (*Quarantine, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs"), 0o700); err != nil {
		return nil, storage(err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, storage(err)
	}
	if !st.IsDir() || st.Mode().Perm()&0o022 != 0 {
		return nil, refuse(ReasonStorage, "%s: others can write there, or it is a link", dir)
	}
	l, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, storage(err)
	}
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(refuse(ReasonBusy, "%s is used by another import", dir), l.Close())
	}
	return &Quarantine{dir, l}, nil
}

// Close lets the next one in.
func (q *Quarantine) Close() error { return q.lock.Close() }

// room refuses what does not fit beside what is there.
func (q *Quarantine) room(bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(q.dir, &st); err != nil {
		return storage(err)
	}
	if free := int64(st.Bavail) * st.Bsize; bytes > free {
		return refuse(ReasonStorage, "%d bytes are to come, %s has room for %d", bytes, q.dir, free)
	}
	return nil
}

// Clear removes everything that was fetched.
func (q *Quarantine) Clear() error {
	for _, name := range []string{"blobs", "archive.part", "archive.part.json"} {
		if err := os.RemoveAll(filepath.Join(q.dir, name)); err != nil {
			return storage(err)
		}
	}
	return storage(os.Mkdir(filepath.Join(q.dir, "blobs"), 0o700))
}
