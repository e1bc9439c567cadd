package probe

import (
	"errors"
	"io/fs"
	"strings"

	"portcullis/attestserver/protocol"
)

// helpers tells which programs the kernel itself starts as root: for who dumps core,
// when a module is wanted, and to power off. A kernel that never does so has no such file.
func (p *Boot) helpers() (out []protocol.Helper, err error) {
	for _, name := range protocol.Helpers {
		b, err := read(p.Proc, "sys/kernel", name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, protocol.Helper{Name: name, Value: clean(strings.TrimSuffix(string(b), "\n"))})
	}
	return out, nil
}
