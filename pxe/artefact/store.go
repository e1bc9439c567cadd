package artefact

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/images/manifest"
)

// Store holds the image of a directory and loads it again when a file there
// has changed. It is safe for concurrent use.
type Store struct {
	dir    string
	policy Policy
	floor  *manifest.Floor
	now    func() time.Time

	mu      sync.Mutex
	image   *Image
	seen    identity // files that image, or the last refusal, came from
	refusal error
}

// NewStore makes a store over dir; nothing is read yet. The policy's floor is
// the configured one; floor remembers the highest version that was accepted.
func NewStore(dir string, policy Policy, floor *manifest.Floor, now func() time.Time) *Store {
	return &Store{dir: dir, policy: policy, floor: floor, now: now}
}

// Change tells what Current did.
type Change int

// Changes.
const (
	Unchanged Change = iota
	Loaded           // a new image took the place of the old one
	Refused          // the directory holds no acceptable image; there is none now
)

// Current returns the image to boot from now. Files are looked at by their
// identity (device, inode, size, both times): where one changed, all are
// verified again. A directory that does not hold a valid image gives an error
// and no image, even where an older one is still in memory: what an operator
// or an attacker did to the directory is to be seen, not papered over. The
// images handed out before stay readable until their holder closes them.
func (s *Store) Current() (*Image, Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	found := look(s.dir)
	if s.image != nil && maps.Equal(found, s.seen) {
		// Time passes without any file changing.
		if now.Before(s.image.Manifest.NotBefore) || !now.Before(s.image.Manifest.NotAfter) {
			s.image = nil
			return s.load(now)
		}
		return s.image, Unchanged, nil
	}
	if s.refusal != nil && maps.Equal(found, s.seen) && !timeMatters(s.refusal) {
		return nil, Unchanged, s.refusal
	}
	return s.load(now)
}

func (s *Store) load(now time.Time) (*Image, Change, error) {
	p := s.policy
	p.Floor = max(p.Floor, s.floor.Value())
	img, seen, err := load(s.dir, p, now)
	if err == nil && !maps.Equal(seen, look(s.dir)) {
		err = errors.Join(&Error{ReasonChanged, fmt.Errorf("a file in %s changed while it was read", s.dir)}, img.Close())
	}
	if err == nil {
		if err = s.floor.Raise(img.Manifest.Version); err != nil {
			err = errors.Join(err, img.Close())
		}
	}
	if err != nil {
		change := Refused
		if s.refusal != nil && s.refusal.Error() == err.Error() {
			change = Unchanged // already reported
		}
		s.image, s.refusal, s.seen = nil, err, look(s.dir)
		return nil, change, err
	}
	s.image, s.refusal, s.seen = img, nil, seen
	return img, Loaded, nil
}

// timeMatters tells whether the same files could be acceptable later.
func timeMatters(err error) bool {
	switch Reason(err) {
	case manifest.ReasonNotYet, manifest.ReasonExpired, ReasonChanged, ReasonUnreadable:
		return true
	}
	return false
}

// identity says which files were there. It notices every replacement and every
// write through the filesystem; the digests notice the rest when it is loaded.
type identity map[string]fileID

type fileID struct {
	device, inode uint64
	size          int64
	mtime, ctime  unix.Timespec
}

func fileIdentity(st *unix.Stat_t) fileID {
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
}

func look(dir string) identity {
	found := identity{}
	for _, name := range []string{manifest.Envelope, manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root} {
		var st unix.Stat_t
		if err := unix.Lstat(dir+"/"+name, &st); err == nil {
			found[name] = fileIdentity(&st)
		}
	}
	return found
}
