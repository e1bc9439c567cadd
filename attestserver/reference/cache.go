package reference

import (
	"bytes"
	"sync"

	"golang.org/x/sys/unix"
)

// What a cache holds: references that are looked at with every answer are a few, of a
// hundred to a few thousand bytes.
const (
	maxCached = 16
	maxSmall  = 4 << 10
)

// cache remembers small files for as long as they are the same ones: one call of the
// kernel tells, where reading takes five. A file that somebody has removed or put there is
// seen at once; what this Store writes is forgotten before.
type cache struct {
	mu sync.Mutex
	of map[string]cached // by path
}

type cached struct {
	mark mark
	data []byte
}

// mark is a file at a time: a file that is written to, or put in its place, has another.
type mark struct {
	device, inode    uint64
	size             int64
	changed, written unix.Timespec
}

func markOf(path string) (m mark, ok bool) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return m, false
	}
	return mark{st.Dev, st.Ino, st.Size, st.Ctim, st.Mtim}, true
}

// get returns a copy of what is remembered of the file, if it still is what it was.
func (c *cache) get(path string) ([]byte, bool) {
	c.mu.Lock()
	known, ok := c.of[path]
	c.mu.Unlock()
	if !ok {
		return nil, false
	}
	if now, there := markOf(path); !there || now != known.mark {
		c.forget(path)
		return nil, false
	}
	return bytes.Clone(known.data), true
}

// keep remembers what was read from a file that had the mark before.
func (c *cache) keep(path string, before mark, data []byte) {
	if len(data) > maxSmall || int64(len(data)) != before.size {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil || len(c.of) >= maxCached {
		c.of = make(map[string]cached)
	}
	c.of[path] = cached{before, bytes.Clone(data)}
}

func (c *cache) forget(path string) {
	c.mu.Lock()
	delete(c.of, path)
	c.mu.Unlock()
}
