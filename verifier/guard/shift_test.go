package guard

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis/verifier/engine"
	"portcullis/verifier/image"
	"portcullis/verifier/verity"
)

// capabilityOf is CAP_NET_RAW for a program (struct vfs_cap_data), of revision 2, or of
// revision 3 for the namespaces of root.
func capabilityOf(revision byte, root uint32) []byte {
	b := []byte{1, 0, 0, revision, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if revision == 3 {
		b = binary.LittleEndian.AppendUint32(b, root)
	}
	return b
}

// An engine whose layers cannot be compared is none that containers are started in.
func TestEngineThatTellsItsLayers(t *testing.T) {
	for name, c := range map[string]struct {
		info engine.Info
		told error
		fit  bool
	}{
		"overlay2":                        {engine.Info{Store: "overlay2"}, nil, true},
		"overlay2 with user namespaces":   {engine.Info{Store: "overlay2", Userns: true, FirstUID: 1, FirstGID: 1}, nil, true},
		"containerd":                      {engine.Info{Store: "overlayfs", Containerd: true}, nil, true},
		"containerd that is not reached":  {engine.Info{Store: "overlayfs", Containerd: true}, errors.New("permission denied"), false},
		"containerd with user namespaces": {engine.Info{Store: "overlayfs", Containerd: true, Userns: true, FirstUID: 1, FirstGID: 1}, nil, false},
		"an engine of an ordinary user":   {engine.Info{Store: "overlay2", Rootless: true}, nil, false},
		"a store that does not tell":      {engine.Info{Store: "vfs"}, errors.New("does not say"), false},
	} {
		if err := tellable(c.info, c.told); (err == nil) != c.fit {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Where the engine has user namespaces the files of a layer belong to others than the
// image says, all by the same number: anything else is somebody's.
func TestLayerOfARemappedEngine(t *testing.T) {
	const first = 200000
	f := image.File{Path: "probe", Kind: image.KindFile, Mode: 0o755, UID: 5, GID: 7, Size: 1, Sum: sumOf([]byte("x"))}
	f.Xattrs = strconv.Quote(capabilityAttr) + "=" + strconv.Quote(string(capabilityOf(2, 0)))
	for name, c := range map[string]struct {
		uid, gid   int
		capability []byte
		by         shift
		same       bool
	}{
		"as the image":            {5, 7, capabilityOf(2, 0), shift{}, true},
		"shifted":                 {first + 5, first + 7, capabilityOf(2, 0), shift{first, first}, true},
		"shifted, with its root":  {first + 5, first + 7, capabilityOf(3, first), shift{first, first}, true},
		"not shifted":             {5, 7, capabilityOf(2, 0), shift{first, first}, false},
		"root of the machine":     {0, 0, capabilityOf(2, 0), shift{first, first}, false},
		"another user":            {first + 6, first + 7, capabilityOf(2, 0), shift{first, first}, false},
		"another group":           {first + 5, first + 8, capabilityOf(2, 0), shift{first, first}, false},
		"shifted without reason":  {first + 5, first + 7, capabilityOf(2, 0), shift{}, false},
		"for another root":        {first + 5, first + 7, capabilityOf(3, first+1), shift{first, first}, false},
		"another capability":      {first + 5, first + 7, append([]byte{1, 0, 0, 2, 0xff}, capabilityOf(2, 0)[5:]...), shift{first, first}, false},
		"for a root where is one": {5, 7, capabilityOf(3, first), shift{}, false},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, f.Path)
		err := errors.Join(os.WriteFile(path, []byte("x"), 0o755), os.Chmod(path, 0o755), os.Chown(path, c.uid, c.gid), unix.Lsetxattr(path, capabilityAttr, c.capability, 0))
		if err != nil {
			t.Fatal(err)
		}
		same := &comparison{by: c.by, files: verity.Kernel{}, form: formVerity}
		if err := errors.Join(same.onDisk(dir), same.sameFile(dir, &f, false), same.contents(t.Context())); (err == nil) != c.same {
			t.Errorf("%s: %v", name, err)
		}
	}
}
