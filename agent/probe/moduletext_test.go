package probe

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"portcullis/attestserver/protocol"
)

// memory is the kernel's, of 4 KiB; what is given happens while it is read.
type memory func()

func (m memory) ReadAt(b []byte, off int64) (int, error) {
	m()
	return copy(b, make([]byte, len(b))), nil
}

// A module that is unloaded, or loaded anew, while it is read is gone: what lies there then
// is not its text.
func TestModuleUnloadedWhileItIsRead(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(path string) error
		gone      bool
	}{
		"stays":        {func(string) error { return nil }, false},
		"unloaded":     {os.Remove, true},
		"loaded again": {func(path string) error { return os.WriteFile(path, []byte("0xffffffffc0008000\n"), 0o600) }, true},
	} {
		sys := t.TempDir()
		path := filepath.Join(sys, "module", "m", "sections", ".text")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("0xffffffffc0000000\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		r := &textReader{Modules: &Modules{Host{Sys: sys}}, sum: sha256.New(), segments: []segment{{0, 0xffffffffc0000000, 0, 1 << 20}},
			kcore: memory(func() {
				if err := c.meanwhile(path); err != nil {
					t.Error(err)
				}
			})}
		got, err := r.module(protocol.ModuleAsk{Name: "m", Text: []protocol.ModulePart{{Name: ".text", Size: 4096}}, Pieces: []protocol.ModulePiece{{Part: 0, Offset: 0, Size: 16}}})
		if c.gone != errors.Is(err, fs.ErrNotExist) || !c.gone && (err != nil || got.Sum == "") || c.gone && len(r.raw) != 0 {
			t.Errorf("%s: %+v %v, %d bytes", name, got, err, len(r.raw))
		}
	}
}
