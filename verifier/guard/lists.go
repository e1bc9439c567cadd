package guard

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"portcullis/internal/atomicfile"
	"portcullis/internal/slab"
	"portcullis/verifier/image"
)

// A list of files goes through memory name by name: an image may have 200,000 of them,
// of which the JSON alone takes more than all else that verifierd has.

// writeList writes a list: an array in JSON. That of an empty layer is null, as it has always
// been: an image that was loaded long ago may share the layer, and knows the digest.
func writeList(to io.Writer, files iter.Seq[image.File]) error {
	w := bufio.NewWriterSize(to, 64<<10)
	before, end := "[", "null"
	for f := range files {
		b, err := json.Marshal(&f)
		if err != nil {
			return err
		}
		w.WriteString(before) // an error stays until Flush
		w.Write(b)
		before, end = ",", "]"
	}
	w.WriteString(end)
	return w.Flush()
}

// newLists are the lists of an image that is being read. Each is written when its layer was
// read, so that no more than one layer's is in memory, into a file that has no name: who
// may not load the image leaves nothing behind. Which layers are the image's, and in which order, is
// known in the end only, so each list is found by what its layer was hashed to.
type newLists struct {
	state *state
	all   map[string]newList    // by diffID
	free  func() (int64, error) // bytes where they lie; nil: the disk is asked
}

type newList struct {
	file *os.File
	tree treeOf
}

// add writes the list of a layer.
func (n *newLists) add(l *image.Layer) error {
	if _, ok := n.all[l.DiffID]; ok {
		return nil // the same bytes, with the same names
	}
	return n.write(l.DiffID, l.Tree.Files())
}

func (n *newLists) write(diffID string, files iter.Seq[image.File]) error {
	dir := filepath.Dir(n.state.treePath(treeOf{}))
	err := os.MkdirAll(dir, 0o700)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	}
	if err != nil {
		return fmt.Errorf("guard: lists of files: %w", err)
	}
	free := n.free
	if free == nil {
		free = func() (int64, error) { return freeOn(dir) }
	}
	sum := sha256.New()
	if err := writeList(io.MultiWriter(&roomy{to: f, free: free}, sum), files); err != nil {
		return fmt.Errorf("guard: lists of files: %w", errors.Join(err, f.Close()))
	}
	if n.all == nil {
		n.all = map[string]newList{}
	}
	n.all[diffID] = newList{f, treeOf{DiffID: diffID, Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Form: formVerity}}
	return nil
}

// keep puts the lists of layers where they are looked for. Those of others are forgotten.
func (n *newLists) keep(layers []string) (trees []treeOf, err error) {
	for _, diffID := range layers {
		l, ok := n.all[diffID]
		if !ok {
			return nil, fmt.Errorf("guard: lists of files: the layer %s was not read", diffID)
		}
		if slices.Contains(trees, l.tree) { // a layer that is there twice
			trees = append(trees, l.tree)
			continue
		}
		err := atomicfile.Write(n.state.treePath(l.tree), true, func(w io.Writer) error {
			_, err := l.file.Seek(0, io.SeekStart)
			if err == nil {
				_, err = io.Copy(w, l.file)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("guard: lists of files: %w", err)
		}
		trees = append(trees, l.tree)
	}
	return trees, nil
}

func (n *newLists) Close() error {
	var all []error
	for _, l := range n.all {
		all = append(all, l.file.Close())
	}
	return errors.Join(all...)
}

// names gives f one name of a list after the other. f may keep it.
type names func(f func(*image.File) error) error

// list opens the list of a layer and holds it against its digest before the first of its names
// is looked at.
func (s *state) list(t treeOf, use func(names) error) error {
	f, err := os.Open(s.treePath(t))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if !t.is(sum.Sum(nil)) {
		return t.changed()
	}
	return use(func(each func(*image.File) error) error {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return t.read(f, each)
	})
}

func (t treeOf) is(sum []byte) bool { return "sha256:"+hex.EncodeToString(sum) == t.Digest }

func (t treeOf) changed() error {
	return refuse(ReasonImageStore, "the list of the layer %s was changed", t.DiffID)
}

// read goes through the text of a list. Whether it was the right one shows in the end.
func (t treeOf) read(from io.Reader, each func(*image.File) error) error {
	sum := sha256.New()
	dec := json.NewDecoder(io.TeeReader(from, sum))
	if _, err := dec.Token(); err != nil {
		return refuse(ReasonImageStore, "the list of the layer %s: %v", t.DiffID, err)
	}
	for dec.More() {
		var next image.File
		if err := dec.Decode(&next); err != nil {
			return refuse(ReasonImageStore, "the list of the layer %s: %v", t.DiffID, err)
		}
		if err := each(&next); err != nil {
			return err
		}
	}
	// What follows the list belongs to its digest, too.
	if _, err := io.Copy(sum, from); err != nil {
		return err
	}
	if !t.is(sum.Sum(nil)) {
		return t.changed()
	}
	return nil
}

// nameList is the names of a layer in the order of its list.
type nameList struct {
	text  slab.Text
	names []listedName
}

// listedName is where a name is, and how long.
type listedName struct {
	at slab.Ref
	n  uint32
}

func (l *nameList) at(i int) []byte { return l.text.At(l.names[i].at, 0, int(l.names[i].n)) }

// add takes the next name. A list in another order is none that was written here.
func (l *nameList) add(name string) error {
	if n := len(l.names); n > 0 && bytes.Compare(l.at(n-1), []byte(name)) > 0 {
		return refuse(ReasonImageStore, "/%.200q is not in its place in the list", name)
	}
	l.names = append(l.names, listedName{l.text.Add(name), uint32(len(name))})
	return nil
}

// from is where name is, or would be.
func (l *nameList) from(name string) int {
	return sort.Search(len(l.names), func(i int) bool { return bytes.Compare(l.at(i), []byte(name)) >= 0 })
}

func (l *nameList) has(name string) bool {
	i := l.from(name)
	return i < len(l.names) && string(l.at(i)) == name
}

// under tells whether a directory has listed names in it.
func (l *nameList) under(dir string) bool {
	if dir == "." {
		return true
	}
	i := l.from(dir + "/")
	return i < len(l.names) && bytes.HasPrefix(l.at(i), []byte(dir+"/"))
}
