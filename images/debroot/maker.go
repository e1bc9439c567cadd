package debroot

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"portcullis/images/deb"
)

// Maker runs the stages of one build. It is for one goroutine; builds beside
// each other have a Maker each and may share the cache directory.
type Maker struct {
	CacheDir string // absolute
	Progress Progress
	Refresh  bool // ask the archive for newer packages instead of using the last answer
	Store    *deb.Store

	stages int // begun so far
}

// NewMaker opens the cache directory. progress may be nil.
func NewMaker(cacheDir string, progress Progress, refresh bool) (*Maker, error) {
	dir, err := filepath.Abs(cacheDir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	if progress == nil {
		progress = Quiet{}
	}
	return &Maker{CacheDir: dir, Progress: progress, Refresh: refresh, Store: &deb.Store{Dir: filepath.Join(dir, "deb")}}, nil
}

// Begin opens a stage for the progress; the returned function ends it, unless
// stages inside it have ended it already.
func (m *Maker) Begin(name, detail string) func(cached bool) {
	start := time.Now()
	m.stages++
	mine := m.stages
	m.Progress.Stage(name, detail)
	return func(cached bool) {
		if m.stages == mine {
			m.Progress.Done(cached, time.Since(start))
		}
	}
}
