package expect

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"portcullis/attestserver/protocol"
)

// Files is the twin of probe.Files: every directory must have the digest that
// follows from the signed image, or from the image and the entries that the PC
// lists as changed, each of which is judged.
type Files struct {
	user
	making sync.Mutex
	tree   map[string]*treeDir // of the image, by path; made with the first answer, of whatever PC
	leaves *leaves             // of the tree
}

// treeDir is one directory of the image.
type treeDir struct {
	self    protocol.TreeEntry
	entries []protocol.TreeEntry
}

// filesAsked are the trees that only the image fills. Configuration is read,
// programs and libraries are known by size and time: op procs and op pmem look
// at those that run.
var filesAsked = protocol.FilesParams{
	Roots: []string{"/boot", "/etc", "/home", "/opt", "/root", "/srv", "/usr"},
	Content: []string{"/etc", "/home", "/root", "/usr/lib/modprobe.d", "/usr/lib/modules-load.d", "/usr/lib/sysctl.d", "/usr/lib/systemd/system",
		"/usr/lib/tmpfiles.d", "/usr/lib/udev/rules.d", "/usr/local"},
}

// Types of entries, stat(2).
const (
	typeMask    = 0o170000
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeLink    = 0o120000
)

// booted are the entries that systemd, its tmpfiles and Docker make in those
// trees while the machine runs, with the type that each must have. A link has
// its target, a regular file at most the size of a machine id.
var booted = map[string]struct {
	kind   uint32
	target string
}{
	"/etc/machine-id":          {typeRegular, ""},
	"/etc/default/locale":      {typeLink, "../locale.conf"},
	"/etc/vconsole.conf":       {typeLink, "default/keyboard"},
	"/etc/cni":                 {typeDir, ""},
	"/etc/cni/net.d":           {typeDir, ""},
	"/etc/.pwd.lock":           {typeRegular, ""},
	"/root/.ssh":               {typeDir, ""},
	"/etc/credstore":           {typeDir, ""},
	"/etc/credstore.encrypted": {typeDir, ""},
	"/srv":                     {typeDir, ""},
}

// maxBooted bounds the regular files among them: a machine id and its line end.
const maxBooted = 33

// Name implements protocol.Expectation.
func (*Files) Name() string { return protocol.OpFiles }

// Params implements protocol.Expectation. Until the tree of the image is read,
// which takes a moment and nobody may wait for here, no leaf is opened.
func (e *Files) Params(r io.Reader, _ *protocol.ImageState) ([]byte, error) {
	ask := filesAsked
	if !e.making.TryLock() {
		return protocol.EncodeOp(ask)
	}
	all := e.leaves
	e.making.Unlock()
	for range openedLeaves {
		if all == nil || all.total == 0 {
			break
		}
		l, err := all.pick(r)
		if err != nil {
			return nil, err
		}
		ask.Opened = append(ask.Opened, l)
	}
	return protocol.EncodeOp(ask)
}

// Judge implements protocol.Expectation.
func (e *Files) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.FilesData
	if !j.read(in, &d) {
		return j.list
	}
	if err := e.load(); err != nil {
		j.unjudged(err)
		return j.list
	}
	changed := map[string][]protocol.TreeEntry{}
	own := map[string]protocol.TreeEntry{}
	for _, c := range d.Changed {
		dir := path.Dir(c.Path)
		changed[dir] = append(changed[dir], c)
		own[c.Path] = c
	}
	seen, macs := map[string]bool{}, in.Key.MACs()
	for _, dir := range d.Dirs {
		if seen[dir.Path] {
			j.fatal(ReasonMalformed, "%s is listed twice", dir.Path)
			return j.list
		}
		seen[dir.Path] = true
		e.dir(j, macs, dir, changed[dir.Path], own[dir.Path])
	}
	if err := e.opened(j, in, macs, &d); err != nil {
		j.unjudged(err)
		return j.list
	}
	for _, p := range slices.Sorted(maps.Keys(e.tree)) {
		if !seen[p] {
			j.fatal(ReasonFilesRemoved, "the directory %s is gone", p)
		}
	}
	return j.list
}

// dir judges one directory.
func (e *Files) dir(j *judge, macs *protocol.MACs, dir protocol.TreeDir, changed []protocol.TreeEntry, own protocol.TreeEntry) {
	image := e.tree[dir.Path]
	if image != nil && bytes.Equal(dir.MAC, macs.TreeMAC(dir.Path, image.self, image.entries)) {
		return
	}
	want := treeDir{self: own}
	if image != nil {
		want = treeDir{self: image.self, entries: slices.Clone(image.entries)}
		if own.Path != "" {
			want.self = own
		}
	} else if own.Path == "" && booted[dir.Path].kind == typeDir {
		want.self = protocol.TreeEntry{Path: dir.Path, Mode: typeDir | 0o755} // a root that nothing lists
	}
	for _, c := range changed {
		i := slices.IndexFunc(want.entries, func(o protocol.TreeEntry) bool { return o.Path == c.Path })
		if i < 0 {
			want.entries = append(want.entries, c)
		} else {
			want.entries[i] = c
		}
	}
	slices.SortFunc(want.entries, func(a, b protocol.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	if !bytes.Equal(dir.MAC, macs.TreeMAC(dir.Path, want.self, want.entries)) {
		j.fatal(ReasonFilesRemoved, "%s: entries are gone, or differ without being listed", dir.Path)
		return
	}
	for _, c := range changed {
		e.entry(j, image, c)
	}
}

// entry judges one entry that the PC lists as changed.
func (e *Files) entry(j *judge, image *treeDir, c protocol.TreeEntry) {
	i := -1
	if image != nil {
		i = slices.IndexFunc(image.entries, func(o protocol.TreeEntry) bool { return o.Path == c.Path })
	}
	if i >= 0 && image.entries[i].Mode&typeMask == typeDir && same(image.entries[i], c) {
		return // something below it was written; that is judged by itself
	}
	if allowedBoot(c) {
		return
	}
	what := fmt.Sprintf("%s: mode %o, owner %d:%d, %d bytes %s", c.Path, c.Mode, c.UID, c.GID, c.Size, c.Target)
	if i < 0 {
		j.fatal(ReasonFilesAdded, "%s", what)
		return
	}
	j.fatal(ReasonFilesChanged, "%s", what)
}

func same(a, b protocol.TreeEntry) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Size == b.Size && a.Target == b.Target && bytes.Equal(a.SHA256, b.SHA256)
}

func allowedBoot(c protocol.TreeEntry) bool {
	want, ok := booted[c.Path]
	return ok && c.Mode&typeMask == want.kind && c.Target == want.target && c.UID == 0 && c.GID == 0 && (c.Mode&0o6022 == 0 || want.kind == typeLink) &&
		(want.kind != typeRegular || c.Size <= maxBooted)
}

// load reads the trees of the image.
func (e *Files) load() error {
	e.making.Lock()
	defer e.making.Unlock()
	if e.tree != nil {
		return nil
	}
	tree := map[string]*treeDir{}
	top, err := e.files.List("/")
	if err != nil {
		return err
	}
	for _, t := range top {
		if p := "/" + t.Name; slices.Contains(filesAsked.Roots, p) && t.IsDir() {
			self := protocol.TreeEntry{Path: p, Mode: t.Mode, UID: t.UID, GID: t.GID}
			if err := e.loadDir(tree, self); err != nil {
				return err
			}
		}
	}
	e.tree, e.leaves = tree, leavesOf(tree)
	return nil
}

func (e *Files) loadDir(tree map[string]*treeDir, self protocol.TreeEntry) error {
	list, err := e.files.List(self.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	d := &treeDir{self: self}
	tree[self.Path] = d
	for _, l := range list {
		t := protocol.TreeEntry{Path: path.Join(self.Path, l.Name), Mode: l.Mode, UID: l.UID, GID: l.GID, Target: l.Target}
		if l.IsDir() {
			if err := e.loadDir(tree, t); err != nil {
				return err
			}
		} else {
			t.CTime = l.Time
		}
		if l.IsRegular() {
			t.Size = l.Size
			if filesAsked.Reads(t.Path) {
				if t.SHA256, err = e.digest(t.Path); err != nil {
					return err
				}
			}
		}
		d.entries = append(d.entries, t)
	}
	slices.SortFunc(d.entries, func(a, b protocol.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

// digest is the SHA-256 of a file of the image.
func (im *image) digest(name string) ([]byte, error) {
	r, err := im.files.Reader(name)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
