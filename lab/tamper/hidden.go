package tamper

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	"portcullis/lab"
	"portcullis/lab/qemu"
)

// Offsets in struct module of a 64-bit kernel (include/linux/module.h): its list
// entry follows the state, its name follows that.
const (
	listOffset = 8
	nameOffset = 24
)

// hidden is the module that is out of the list, so that it can be put back.
var hidden struct {
	sync.Mutex
	entry, next, prev uint64
}

// hideModule takes a module out of the kernel's list as a rootkit does: it stays
// loaded, and /proc/modules does not have it any more.
func hideModule(name string) func(context.Context, *lab.Lab) error {
	return func(ctx context.Context, l *lab.Lab) error {
		head, err := symbol(ctx, l, "modules")
		if err != nil {
			return err
		}
		return l.PC().Debug(ctx, false, func(m *qemu.Memory) error {
			for at, n := head, 0; n < 1024; n++ {
				b, err := m.Read(at, 16)
				if err != nil {
					return err
				}
				next, prev := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
				if at != head {
					text, err := m.Read(at-listOffset+nameOffset, 56)
					if err != nil {
						return err
					}
					if got, _, _ := strings.Cut(string(text), "\x00"); got == name {
						hidden.Lock()
						defer hidden.Unlock()
						hidden.entry, hidden.next, hidden.prev = at, next, prev
						return link(m, prev, next)
					}
				}
				if at = next; at == head {
					break
				}
			}
			return fmt.Errorf("module %s is not in the kernel's list", name)
		})
	}
}

// showModule puts the module back.
func showModule(ctx context.Context, l *lab.Lab) error {
	hidden.Lock()
	defer hidden.Unlock()
	return l.PC().Debug(ctx, false, func(m *qemu.Memory) error {
		if err := pointer(m, hidden.prev, hidden.entry); err != nil {
			return err
		}
		return pointer(m, hidden.next+8, hidden.entry)
	})
}

// link joins two entries of a list (include/linux/list.h).
func link(m *qemu.Memory, prev, next uint64) error {
	if err := pointer(m, prev, next); err != nil {
		return err
	}
	return pointer(m, next+8, prev)
}

func pointer(m *qemu.Memory, at, to uint64) error {
	return m.Write(at, binary.LittleEndian.AppendUint64(nil, to))
}

// symbol is the address of a name in the kernel.
func symbol(ctx context.Context, l *lab.Lab, name string) (uint64, error) {
	r, err := l.Exec(ctx, "/usr/bin/awk", fmt.Sprintf("$3 == %q {print $1; exit}", name), "/proc/kallsyms")
	if err != nil {
		return 0, err
	}
	var at uint64
	if _, err := fmt.Sscanf(strings.TrimSpace(string(r.Stdout)), "%x", &at); err != nil || at == 0 {
		return 0, fmt.Errorf("the kernel's symbols have no %s: %q", name, r.Stdout)
	}
	return at, nil
}

// patchText changes code of the kernel that never runs in a lab's PC: the text of a
// machine check that QEMU does not raise.
func patchText(ctx context.Context, l *lab.Lab) error {
	at, err := symbol(ctx, l, "do_machine_check")
	if err != nil {
		return err
	}
	const text = 0xffffffff81000000
	return poke(ctx, l, "Kernel code", at-text+32, []byte{0xcc})
}
