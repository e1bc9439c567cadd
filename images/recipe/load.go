package recipe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// Source reads a recipe and the files it names. name is slash-separated.
type Source interface {
	ReadFile(name string) ([]byte, error)
}

// dirSource reads from a directory of this machine.
type dirSource string

func (d dirSource) ReadFile(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), filepath.FromSlash(name)))
}

// fsSource reads from an embedded file system.
type fsSource struct{ fs.FS }

func (f fsSource) ReadFile(name string) ([]byte, error) { return fs.ReadFile(f.FS, path.Clean(name)) }

// Builtin is the project's own recipe of what is being built.
type Builtin struct {
	Name  string // what a user's recipe extends to start from it, for instance hpc
	FS    fs.FS  // holds the project's recipes
	Entry string // the one of them that is meant, for instance generic.yaml
}

// Load reads a recipe: with file == "" the built-in one, otherwise file and
// what it extends (the built-in one by its name, or a path beside it).
func Load(builtin Builtin, file string) (*Recipe, error) {
	l := &loader{name: builtin.Name, builtin: fsSource{builtin.FS}, entry: builtin.Entry, seen: map[string]bool{}}
	r := new(Recipe)
	var err error
	if file == "" {
		err = l.load(l.builtin, l.entry, true, Position{}, r)
	} else {
		err = l.load(dirSource(filepath.Dir(file)), filepath.Base(file), false, Position{}, r)
	}
	if err != nil {
		return nil, err
	}
	if err := r.check(builtin.Name); err != nil {
		return nil, err
	}
	return r, nil
}

type loader struct {
	name    string
	builtin Source
	entry   string
	seen    map[string]bool
}

const maxDepth = 8 // of extends

func (l *loader) load(src Source, name string, ours bool, from Position, into *Recipe) error {
	id := fmt.Sprintf("%v %T %s", ours, src, name)
	if l.seen[id] || len(l.seen) >= maxDepth {
		return errorf(from, ReasonLoop, "recipe %s extends itself, or there are more than %d", name, maxDepth)
	}
	l.seen[id] = true
	b, err := src.ReadFile(name)
	if err != nil {
		if from.File == "" {
			from = Position{name, 0}
		}
		return errorf(from, ReasonFile, "cannot read recipe %s: %v", name, plain(err))
	}
	d, err := parse(name, b)
	if err != nil {
		return err
	}
	switch {
	case d.extends == "":
	case d.extends == l.name && !ours:
		err = l.load(l.builtin, l.entry, true, d.extendsAt, into)
	default:
		if path.IsAbs(d.extends) {
			return errorf(d.extendsAt, ReasonValue, "extends: %q must be %q or a path relative to this recipe", d.extends, l.name)
		}
		err = l.load(src, path.Join(path.Dir(name), d.extends), ours, d.extendsAt, into)
	}
	if err != nil {
		return err
	}
	return d.apply(src, path.Dir(name), ours, into)
}

// plain drops the path of this machine from an error.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
