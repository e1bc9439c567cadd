package debroot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/images/cpio"
	"portcullis/images/recipe"
	"portcullis/images/squash"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Fatalf("got %v, want reason %s", err, want)
	}
}

func newTree() *squash.Tree { return squash.NewTree(time.Unix(1700000000, 0).UTC()) }

// masters are base-passwd's files, shortened.
func masters(t *testing.T, tree *squash.Tree) {
	t.Helper()
	must(t, tree.WriteFile(groupMaster, 0o644, []byte("root:*:0:\nmail:*:8:\nnogroup:*:65534:\n")))
	must(t, tree.WriteFile(passwdMaster, 0o644, []byte("root:*:0:0:root:/root:/bin/bash\nmail:*:8:8:mail:/var/mail:/usr/sbin/nologin\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")))
}

func TestUsersComeFromMastersSysusersAndRecipe(t *testing.T) {
	tree := newTree()
	masters(t, tree)
	must(t, tree.WriteFile("/usr/lib/sysusers.d/b.conf", 0o644, []byte("# comment\nu messagebus - \"System Message Bus\" /nonexistent\nm messagebus render\n")))
	must(t, tree.WriteFile("/usr/lib/sysusers.d/a.conf", 0o644, []byte("g render -\nu systemd-network 998:nogroup \"Net: work\"\nu! locked - \nr - 500-900\n")))
	r := &recipe.Recipe{Groups: []recipe.Group{{Name: "docker", GID: 999}}, Users: []recipe.User{{Name: "worker", UID: 200, Home: "/srv"}}}
	must(t, WriteUsers(tree, r))
	read := func(p string) string {
		b, err := tree.Read(p)
		must(t, err)
		return string(b)
	}
	if got, want := read("/etc/passwd"), `root:x:0:0:root:/root:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
worker:x:200:200:worker:/srv:/usr/sbin/nologin
messagebus:x:996:996:System Message Bus:/nonexistent:/usr/sbin/nologin
locked:x:995:995:locked:/:/usr/sbin/nologin
systemd-network:x:998:65534:Net  work:/:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`; sortLines(got) != sortLines(want) {
		t.Errorf("passwd:\n%s", got)
	}
	if got := read("/etc/group"); !strings.Contains(got, "render:x:997:messagebus\n") || !strings.Contains(got, "docker:x:999:\n") {
		t.Errorf("group:\n%s", got)
	}
	for _, line := range strings.Split(strings.TrimSpace(read("/etc/shadow")), "\n") {
		if !strings.Contains(line, ":!*:") {
			t.Errorf("shadow has an account that is not locked: %s", line)
		}
	}
	if tree.Get("/etc/shadow").Mode != 0o600 || tree.Get("/etc/gshadow").Mode != 0o600 {
		t.Error("password files can be read by all")
	}
	again := newTree()
	masters(t, again)
	for _, p := range []string{"/usr/lib/sysusers.d/a.conf", "/usr/lib/sysusers.d/b.conf"} {
		must(t, again.Put(p, tree.Get(p)))
	}
	must(t, WriteUsers(again, r))
	if b, _ := again.Read("/etc/passwd"); string(b) != read("/etc/passwd") {
		t.Error("ids depend on something else than the packages")
	}
}

func sortLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		for j := i + 1; j < len(lines); j++ {
			if lines[j] < lines[i] {
				lines[i], lines[j] = lines[j], lines[i]
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestUsersRefuseClashes(t *testing.T) {
	for _, r := range []*recipe.Recipe{
		{Groups: []recipe.Group{{Name: "mail", GID: 200}}},
		{Users: []recipe.User{{Name: "a", UID: 200}, {Name: "b", UID: 200}}},
	} {
		tree := newTree()
		masters(t, tree)
		wantReason(t, WriteUsers(tree, r), ReasonOptions)
	}
	if WriteUsers(newTree(), &recipe.Recipe{}) == nil {
		t.Error("an image without base-passwd was accepted")
	}
}

func TestEnableMakesTheLinksOfSystemctl(t *testing.T) {
	tree := newTree()
	must(t, tree.WriteFile("/usr/lib/systemd/system/a.socket", 0o644, []byte("[Socket]\nWantedBy=wrong.target\n[Install]\n# WantedBy=no.target\nWantedBy=sockets.target basic.target\nRequiredBy=b.service\nAlias=c.socket\nAlso=d.service\n")))
	must(t, tree.WriteFile("/usr/lib/systemd/system/plain.service", 0o644, []byte("[Service]\n")))
	must(t, Enable(tree, "a.socket"))
	for _, p := range []string{"sockets.target.wants/a.socket", "basic.target.wants/a.socket", "b.service.requires/a.socket", "c.socket"} {
		if n := tree.Get("/etc/systemd/system/" + p); n == nil || n.Target != "/usr/lib/systemd/system/a.socket" {
			t.Errorf("no link %s", p)
		}
	}
	for _, p := range []string{"wrong.target.wants", "no.target.wants", "d.service"} {
		if tree.Get("/etc/systemd/system/"+p) != nil {
			t.Errorf("link %s was made", p)
		}
	}
	wantReason(t, Enable(tree, "plain.service"), ReasonOptions)
	wantReason(t, Enable(tree, "gone.service"), ReasonMissing)
	must(t, Mask(tree, "plain.service"))
	if n := tree.Get("/etc/systemd/system/plain.service"); n == nil || n.Target != "/dev/null" {
		t.Error("not masked")
	}
}

// moduleDir is an index as depmod writes it.
func moduleDir(t *testing.T) *Modules {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep":     "kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz\nkernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz\nkernel/net/core/failover.ko.xz:\nkernel/lib/crc.ko.xz:\nkernel/drivers/md/dm-verity.ko.xz:\n",
		"modules.softdep": "# header\nsoftdep dm_verity pre: crc post: virtio_net\n",
		"modules.builtin": "kernel/drivers/block/loop.ko\n",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	m, err := ReadModules(dir)
	must(t, err)
	return m
}

func TestModulesAreOrderedByNeed(t *testing.T) {
	m := moduleDir(t)
	got, err := m.Order([]string{"virtio-net", "loop", "dm_verity", "failover"})
	must(t, err)
	want := []string{"kernel/net/core/failover.ko.xz", "kernel/drivers/net/net_failover.ko.xz", "kernel/drivers/net/virtio_net.ko.xz", "kernel/lib/crc.ko.xz", "kernel/drivers/md/dm-verity.ko.xz"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	_, err = m.Order([]string{"nosuch"})
	wantReason(t, err, ReasonMissing)
}

func TestModulesAreChosenByGlob(t *testing.T) {
	m := moduleDir(t)
	got, err := m.Choose([]string{"kernel/drivers/net/**", "crc"})
	must(t, err)
	if len(got) != 4 { // with failover, which they need
		t.Errorf("got %v", got)
	}
	_, err = m.Choose([]string{"kernel/drivers/nett/**"})
	wantReason(t, err, ReasonMissing)
}

func goodTree(t *testing.T) *squash.Tree {
	tree := newTree()
	must(t, tree.WriteFile("/etc/shadow", 0o600, []byte("root:!*:::::::\n")))
	must(t, tree.WriteFile("/usr/bin/true", 0o755, []byte("program")))
	return tree
}

// However the lab's command channel comes into a generic tree, it is refused;
// in a lab image all of it is welcome.
func TestGenericImageCannotHoldLabChannel(t *testing.T) {
	for name, add := range map[string]func(*squash.Tree) error{
		"its path":          func(t *squash.Tree) error { return t.WriteFile(LabPath, 0o755, []byte("x")) },
		"another directory": func(t *squash.Tree) error { return t.WriteFile("/usr/bin/hpc-lab", 0o755, []byte("x")) },
		"its unit": func(t *squash.Tree) error {
			return t.WriteFile("/usr/lib/systemd/system/portcullis-lab.service", 0o644, nil)
		},
		"a link to it":     func(t *squash.Tree) error { return t.Link("/usr/bin/harmless", "../lib/portcullis/hpc-lab") },
		"its enabled unit": func(t *squash.Tree) error { return t.Link("/etc/systemd/system/x.wants/portcullis-lab.service", "/x") },
		"its program renamed": func(t *squash.Tree) error {
			return t.WriteFile("/opt/cat", 0o755, append(bytes.Repeat([]byte{7}, 300<<10), labPort...))
		},
	} {
		tree := goodTree(t)
		must(t, add(tree))
		t.Run(name, func(t *testing.T) { wantReason(t, Guard(tree, false), ReasonLabInReal) })
		must(t, Guard(tree, true))
	}
	must(t, Guard(goodTree(t), false))
}

func TestNoImageHasALogin(t *testing.T) {
	for name, add := range map[string]func(*squash.Tree) error{
		"getty":          func(t *squash.Tree) error { return t.WriteFile("/usr/sbin/agetty", 0o755, nil) },
		"ssh":            func(t *squash.Tree) error { return t.WriteFile("/usr/sbin/sshd", 0o755, nil) },
		"empty password": func(t *squash.Tree) error { return t.WriteFile("/etc/shadow", 0o600, []byte("root::::::::\n")) },
		"a password":     func(t *squash.Tree) error { return t.WriteFile("/etc/shadow", 0o600, []byte("root:$6$x$y:::::::\n")) },
		"setuid":         func(t *squash.Tree) error { return t.WriteFile("/usr/bin/x", 0o4755, nil) },
		"no shadow":      func(t *squash.Tree) error { t.Remove("/etc/shadow"); return nil },
	} {
		for _, lab := range []bool{true, false} {
			tree := goodTree(t)
			must(t, add(tree))
			t.Run(fmt.Sprintf("%s, lab %t", name, lab), func(t *testing.T) { wantReason(t, Guard(tree, lab), ReasonUnsafeTree) })
		}
	}
}

func TestSetIDBitsAreDropped(t *testing.T) {
	tree := goodTree(t)
	must(t, tree.WriteFile("/usr/bin/mount", 0o6755, nil))
	must(t, tree.Mkdir("/var/mail", 0o2775))
	dropSetID(tree)
	if tree.Get("/usr/bin/mount").Mode != 0o755 || tree.Get("/var/mail").Mode != 0o2775 {
		t.Error("programs lose the bits, directories keep theirs")
	}
	must(t, Guard(tree, false))
}

// The marker is found wherever it lies, also across the reader's pieces.
func TestContainsFindsAcrossPieces(t *testing.T) {
	for _, at := range []int{0, 1, 256<<10 - 18, 256<<10 - 9, 256<<10 - 1, 256 << 10, 600 << 10} {
		b := make([]byte, 700<<10)
		copy(b[at:], labPort)
		if ok, err := contains(bytes.NewReader(b), labPort); err != nil || !ok {
			t.Errorf("at %d: %t %v", at, ok, err)
		}
	}
	if ok, _ := contains(strings.NewReader("org.portcullis.la"), labPort); ok {
		t.Error("a part was taken for the whole")
	}
	if _, err := contains(io.MultiReader(strings.NewReader("x"), errReader{}), labPort); err == nil {
		t.Error("an unreadable file was taken for a clean one")
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestStageIsWholeOrAbsentAndMadeOnce(t *testing.T) {
	b := &Maker{CacheDir: t.TempDir(), Progress: Quiet{}}
	k := func() *Key { return NewKey("test").Add("a", 1) }
	dir := filepath.Join(b.CacheDir, "s", k().hex())
	_, _, err := b.Stage(t.Context(), "s", k(), func(d string) error {
		must(t, os.WriteFile(filepath.Join(d, "half"), nil, 0o644))
		return errors.New("interrupted")
	})
	if err == nil {
		t.Fatal("the error was lost")
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a half result stayed")
	}
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, _, err := b.Stage(t.Context(), "s", k(), func(d string) error {
				made.Add(1)
				return os.WriteFile(filepath.Join(d, "whole"), nil, 0o644)
			})
			if err != nil || got != dir {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d times", made.Load())
	}
	if _, cached, _ := b.Stage(t.Context(), "s", k(), nil); !cached {
		t.Error("not taken from the cache")
	}
}

func TestKeyKeepsPartsApart(t *testing.T) {
	a := NewKey("s").Add("x", "1").Add("y", "2").hex()
	for _, other := range []string{
		NewKey("s").Add("x", "1\ny 1\n2").hex(), NewKey("s").Add("x", "12").hex(), NewKey("t").Add("x", "1").Add("y", "2").hex(), NewKey("s").Add("y", "2").Add("x", "1").hex(),
	} {
		if other == a {
			t.Error("different inputs have one key")
		}
	}
}

func TestReadInitrd(t *testing.T) {
	archive, err := Pack([]byte("init"), map[string][]byte{"etc/portcullis/trust.json": []byte("{}"), "lib/modules/x.ko": []byte("module")}, 1)
	must(t, err)
	z := cpio.Zstd(archive)
	for name, want := range map[string]string{"etc/portcullis/trust.json": "{}", "init": "init", "lib/modules/x.ko": "module"} {
		b, err := ReadInitrd(z, name)
		if err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if _, err := ReadInitrd(z, "gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	for n := range archive[:len(archive)-512] {
		if n%37 == 0 {
			if _, err := findInArchive(archive[:n], "none"); err == nil {
				t.Fatalf("an archive cut at %d was read", n)
			}
		}
	}
}

func FuzzFindInArchive(f *testing.F) {
	archive, err := Pack([]byte("init"), map[string][]byte{"a/b": []byte("c")}, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(archive, "init")
	f.Add([]byte("070701"), "x")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if got, err := findInArchive(b, name); err == nil && len(got) > len(b) {
			t.Fatal("more than there is")
		}
	})
}

func TestCheckStaticRefusesALoader(t *testing.T) {
	wantReason(t, CheckStatic("/bin/sh", "amd64"), ReasonNotStatic)
	if CheckStatic("/etc/passwd", "amd64") == nil {
		t.Error("a text was taken for a program")
	}
}

func TestPruneKeepsTheNewestAndTheRecent(t *testing.T) {
	b := &Maker{CacheDir: t.TempDir(), Progress: Quiet{}}
	for _, stage := range []string{"base", "kernel", "about", "root", "image"} {
		must(t, os.MkdirAll(filepath.Join(b.CacheDir, stage), 0o755))
	}
	ages := map[string]time.Duration{"a": 0, "b": time.Hour, "c": 3 * time.Hour, "d": 4 * time.Hour, "e": 5 * time.Hour, "f": 6 * time.Hour}
	for name, age := range ages {
		dir := filepath.Join(b.CacheDir, "root", name)
		must(t, os.MkdirAll(filepath.Join(dir, "below"), 0o755))
		must(t, os.Chtimes(dir, time.Now(), time.Now().Add(-age)))
	}
	must(t, os.WriteFile(filepath.Join(b.CacheDir, "root", "x.lock"), nil, 0o644))
	must(t, b.Prune("base", "kernel", "about", "root", "image"))
	entries, err := os.ReadDir(filepath.Join(b.CacheDir, "root"))
	must(t, err)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, " "); got != "a b c d x.lock" {
		t.Errorf("left %s", got)
	}
}
