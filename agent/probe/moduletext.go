package probe

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// maxModuleTexts bounds what one question has read, in bytes.
const maxModuleTexts = 256 << 20

// texts reads the text of the modules that are asked for.
func (p *Modules) texts(ctx context.Context, asked []protocol.ModuleAsk, d *protocol.ModulesData) error {
	if len(asked) == 0 {
		return nil
	}
	f, err := os.Open(filepath.Join(p.Proc, "kcore"))
	if err != nil {
		return err
	}
	defer f.Close()
	t := &textReader{Modules: p, kcore: f, sum: sha256.New()}
	if t.segments, err = segments(f); err != nil {
		return err
	}
	for _, a := range asked {
		if err := alive(ctx); err != nil {
			return err
		}
		one, err := t.module(a)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // it was just unloaded
			one = protocol.ModuleText{Name: a.Name}
		} else if err != nil {
			return fmt.Errorf("text of module %s: %w", a.Name, err)
		}
		d.Text = append(d.Text, one)
	}
	if len(t.raw) > 0 {
		d.Raw, err = packSites(t.raw)
	}
	return err
}

// textReader reads the text of one module after another.
type textReader struct {
	*Modules
	kcore    io.ReaderAt
	segments []segment
	sum      hash.Hash
	buf      []byte
	raw      []byte // the pieces so far
	total    uint64 // bytes that were read so far
}

func (t *textReader) module(a protocol.ModuleAsk) (protocol.ModuleText, error) {
	out := protocol.ModuleText{Name: a.Name}
	if strings.ContainsRune(a.Name, '/') {
		return out, errors.New("a name with a slash")
	}
	var err error
	if a.Layout {
		if out.Layout, err = t.layout(a.Name); err != nil {
			return out, err
		}
	}
	t.sum.Reset()
	var raw []byte
	for i, part := range a.Text {
		b, err := t.section(a.Name, part)
		if err != nil {
			return out, err
		}
		for _, x := range a.Pieces {
			if x.Part == i {
				raw = append(raw, b[x.Offset:x.Offset+x.Size]...)
			}
		}
	}
	out.Sum = hex.EncodeToString(t.sum.Sum(nil)[:protocol.ModuleSumSize/2])
	t.raw = append(t.raw, raw...)
	return out, nil
}

// section reads one section into the buffer and adds it to the sum.
func (t *textReader) section(module string, part protocol.ModulePart) ([]byte, error) {
	address, err := t.address(module, part.Name)
	if err != nil {
		return nil, err
	}
	if t.total += part.Size; t.total > maxModuleTexts {
		return nil, fmt.Errorf("more than %d bytes of text are asked for", maxModuleTexts)
	}
	off, ok := at(t.segments, address, part.Size)
	if !ok {
		return nil, fmt.Errorf("kcore: %d bytes at %#x are not in it", part.Size, address)
	}
	if uint64(cap(t.buf)) < part.Size {
		t.buf = make([]byte, part.Size)
	}
	b := t.buf[:part.Size]
	if _, err := t.kcore.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("kcore at %#x: %w", address, err)
	}
	// The kernel takes the addresses away before the memory: where this one stands still, the
	// bytes are the module's and not those of what came after it.
	if again, err := t.address(module, part.Name); err != nil {
		return nil, err
	} else if again != address {
		return nil, fmt.Errorf("section %s moved while it was read: %w", part.Name, fs.ErrNotExist)
	}
	var head [16]byte
	binary.LittleEndian.PutUint64(head[:], address)
	binary.LittleEndian.PutUint64(head[8:], part.Size)
	t.sum.Write(head[:])
	t.sum.Write(b)
	return b, nil
}

// address is where the kernel says that it has put a section. It says so to root alone.
func (t *textReader) address(module, section string) (uint64, error) {
	if strings.ContainsRune(section, '/') {
		return 0, errors.New("a section with a slash")
	}
	s, err := line(t.Sys, "module", module, "sections", section)
	if err != nil {
		return 0, err
	}
	a, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("section %s: %w", section, err)
	}
	return a, nil
}

// layout lists the addresses of all sections of a module.
func (t *textReader) layout(module string) ([]protocol.ModuleSection, error) {
	entries, err := os.ReadDir(filepath.Join(t.Sys, "module", module, "sections"))
	if err != nil {
		return nil, err
	}
	if len(entries) > protocol.MaxModuleSections {
		return nil, fmt.Errorf("%d sections", len(entries))
	}
	out := make([]protocol.ModuleSection, 0, len(entries))
	for _, e := range entries {
		a, err := t.address(module, e.Name())
		if err != nil {
			return nil, err
		}
		out = append(out, protocol.ModuleSection{Name: e.Name(), Address: a})
	}
	return out, nil
}
