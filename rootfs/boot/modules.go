package boot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ReasonModules: the list of modules cannot be read.
const ReasonModules Reason = "modules"

// ModuleResult is what became of one module.
type ModuleResult struct {
	Path string
	Err  error // nil: loaded, or there already, or its hardware is absent
}

const xzSuffix = ".xz"

// ParseModules reads a list of module files, plain or compressed by xz, one absolute
// path a line, in the order in which they are to be loaded. Empty lines and lines from
// # are skipped.
func ParseModules(list string) ([]string, error) {
	var out []string
	for i, l := range strings.Split(list, "\n") {
		l = strings.TrimSpace(l)
		if l == "" || l[0] == '#' {
			continue
		}
		if !path.IsAbs(l) || path.Clean(l) != l || !strings.HasSuffix(strings.TrimSuffix(l, xzSuffix), ".ko") {
			return nil, Failf(ReasonModules, "line %d: %q is not a clean absolute path of a .ko or .ko.xz", i+1, l)
		}
		out = append(out, l)
	}
	return out, nil
}

// LoadModules loads the files in order and reports each after the other. One
// that fails does not stop the rest: whether it was needed shows later, in the
// stage that misses it, with a reason of its own.
func LoadModules(paths []string) []ModuleResult {
	out := make([]ModuleResult, 0, len(paths))
	for _, p := range paths {
		out = append(out, ModuleResult{p, loadModule(p)})
	}
	return out
}

// ModuleLoading is the loading of modules beside the rest of a boot.
type ModuleLoading struct {
	first, before, done chan struct{}
	results             []ModuleResult
}

// StartModules loads the files as LoadModules does, in order, and returns at once.
// mark is the name of the module (of its file, without suffix) that Before waits for.
// ended, where given, is called with the results before Wait returns.
func StartModules(paths []string, mark string, ended func([]ModuleResult)) *ModuleLoading {
	l := &ModuleLoading{first: make(chan struct{}), before: make(chan struct{}), done: make(chan struct{})}
	first := min(1, len(paths))
	marked := slices.IndexFunc(paths, func(p string) bool { return moduleName(p) == mark })
	if marked < 0 {
		marked = len(paths)
	}
	marked = max(marked, first)
	go func() {
		defer close(l.done)
		l.results = LoadModules(paths[:first])
		close(l.first)
		l.results = append(l.results, LoadModules(paths[first:marked])...)
		close(l.before)
		l.results = append(l.results, LoadModules(paths[marked:])...)
		if ended != nil {
			ended(l.results)
		}
	}()
	return l
}

// moduleName is a module's file without directory and suffixes.
func moduleName(p string) string {
	return strings.TrimSuffix(strings.TrimSuffix(path.Base(p), xzSuffix), ".ko")
}

// First waits until the first module is loaded.
func (l *ModuleLoading) First() { <-l.first }

// Before waits until every module is loaded that the list names before the marked one;
// without such a one, until all are.
func (l *ModuleLoading) Before() { <-l.before }

// Wait waits until all are loaded and returns what became of each.
func (l *ModuleLoading) Wait() []ModuleResult {
	<-l.done
	return l.results
}

func loadModule(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if strings.HasSuffix(p, xzSuffix) {
		flags = unix.MODULE_INIT_COMPRESSED_FILE // Linux 5.17, CONFIG_MODULE_DECOMPRESS
	}
	return judgeModule(p, unix.FinitModule(int(f.Fd()), "", flags))
}

// judgeModule forgives a module that is loaded already (EEXIST) and a driver
// whose hardware is not there (ENODEV).
func judgeModule(p string, err error) error {
	if err == nil || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("load %s: %w", p, err)
}
