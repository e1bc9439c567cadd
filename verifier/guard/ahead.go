package guard

import (
	"maps"
	"os"

	"golang.org/x/sys/unix"
)

// Files that have to be read and hashed before a start are asked for when the container
// is created: while the engine makes it the disk has nothing else to do. That is advice to
// the kernel and no comparison; the bytes are hashed before the start, as ever.

// Bounds of what is asked for, for one image.
const (
	aheadLeast = 64 << 10 // bytes of a file that is worth it
	aheadFiles = 4096
	aheadBytes = 256 << 20
)

// hashedFile notes a file that was hashed, if it is worth being asked for earlier. c.mu is held.
func (c *comparison) hashedFile(x *content) {
	if x.size >= aheadLeast && len(c.slow) < aheadFiles && c.slowBytes+x.size <= aheadBytes {
		c.slow = append(c.slow, x.path())
		c.slowBytes += x.size
	}
}

// compared keeps how the files of an image were compared.
func (g *Guard) compared(id string, c *comparison) {
	known := g.state.images()
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.said.String() != "" {
		g.layers = c.said
	}
	maps.DeleteFunc(g.slow, func(id string, _ []string) bool { _, ok := known[id]; return !ok })
	if len(c.slow) == 0 {
		delete(g.slow, id)
		return
	}
	g.slow[id] = c.slow
}

// ahead lets the kernel read what the next start of an image will hash, beside the caller.
func (g *Guard) ahead(id string) {
	g.mu.Lock()
	paths := g.slow[id]
	g.mu.Unlock()
	if len(paths) == 0 {
		return
	}
	g.work.Go(func() {
		for _, p := range paths {
			f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			if err != nil {
				continue // the comparison will tell
			}
			unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_WILLNEED) // advice: it may be refused
			f.Close()
		}
	})
}
