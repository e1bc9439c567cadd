package expect

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"

	"portcullis/images/modlist"
	"portcullis/images/modtext"
)

// Bounds of what is read of the image for modules.
const (
	maxModuleIndex = 4 << 20  // bytes of modules.dep
	maxModuleFile  = 32 << 20 // bytes of one module's file
	maxModulesHeld = 32 << 20 // bytes of memory of all modules that are held open
)

// moduleFiles are the module files of the image, opened when they are needed and held
// for all PCs that run it. Its methods may be called concurrently.
type moduleFiles struct {
	*image
	mu     sync.Mutex
	kernel *modtext.Exports
	paths  map[string]string // by name, of its file below the modules' directory
	open   map[string]*openModule
	held   int // bytes of memory
	clock  int // counts uses
}

type openModule struct {
	*modtext.Module
	used int
}

// has tells whether the image carries what is needed. An image of an older build has no
// list of the kernel's symbols.
func (f *moduleFiles) has() bool {
	_, found, err := f.inImage(modtext.Path)
	return err != nil || found
}

// ready returns the module if it is open.
func (f *moduleFiles) ready(name string) *modtext.Module {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.open[name]; m != nil {
		return f.use(m)
	}
	return nil
}

func (f *moduleFiles) use(m *openModule) *modtext.Module {
	f.clock++
	m.used = f.clock
	return m.Module
}

// get returns the module, and opens it if it must. No failure is kept: what the disk did not
// give once it may give the next time.
func (f *moduleFiles) get(name string) (*modtext.Module, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.open[name]; m != nil {
		return f.use(m), nil
	}
	read, err := f.read(name)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", name, err)
	}
	m := &openModule{Module: read}
	if f.open == nil {
		f.open = map[string]*openModule{}
	}
	f.open[name] = m
	f.held += m.Memory()
	f.evict(name)
	return f.use(m), nil
}

// evict closes those that were not used for the longest time.
func (f *moduleFiles) evict(but string) {
	for f.held > maxModulesHeld {
		oldest := ""
		for name, m := range f.open {
			if name != but && (oldest == "" || m.used < f.open[oldest].used) {
				oldest = name
			}
		}
		if oldest == "" {
			return
		}
		f.held -= f.open[oldest].Memory()
		delete(f.open, oldest)
	}
}

// exports are the kernel's symbols.
func (f *moduleFiles) exports() (*modtext.Exports, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.index()
	return f.kernel, err
}

// index reads where the files are and what the kernel exports, once.
func (f *moduleFiles) index() error {
	if f.kernel != nil {
		return nil
	}
	list, err := f.files.ReadFile(modtext.Path, modtext.MaxExportsFile)
	if err != nil {
		return err
	}
	dep, err := f.files.ReadFile(path.Join(f.moduleDir(), "modules.dep"), maxModuleIndex)
	if err != nil {
		return err
	}
	paths := map[string]string{}
	for l := range strings.Lines(string(dep)) {
		file, _, ok := strings.Cut(l, ":")
		if name, _, isModule := strings.Cut(path.Base(file), ".ko"); ok && isModule {
			paths[modlist.Name(name)] = file
		}
	}
	kernel, err := modtext.ParseExports(list)
	if err != nil {
		return err
	}
	f.kernel, f.paths = kernel, paths
	return nil
}

func (f *moduleFiles) moduleDir() string {
	return path.Join("/usr/lib/modules", f.image.kernel.release)
}

func (f *moduleFiles) read(name string) (*modtext.Module, error) {
	if err := f.index(); err != nil {
		return nil, err
	}
	file, ok := f.paths[name]
	if !ok {
		return nil, fmt.Errorf("%w in the image", fs.ErrNotExist)
	}
	b, err := f.files.ReadFile(path.Join(f.moduleDir(), file), maxModuleFile)
	if err != nil {
		return nil, err
	}
	return modtext.Open(b)
}
