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
		// The module names its own record, which holds its entry in the list.
		module, err := symbol(ctx, l, "__this_module", "["+name+"]")
		if err != nil {
			return err
		}
		return l.PC().Debug(ctx, false, func(m *qemu.Memory) error {
			b, err := m.Read(module, nameOffset+len(name)+1)
			if err != nil {
				return err
			}
			if string(b[nameOffset:]) != name+"\x00" {
				return fmt.Errorf("the record of module %s holds %q", name, b[nameOffset:])
			}
			hidden.Lock()
			defer hidden.Unlock()
			hidden.entry = module + listOffset
			hidden.next, hidden.prev = binary.LittleEndian.Uint64(b[listOffset:]), binary.LittleEndian.Uint64(b[listOffset+8:])
			return link(m, hidden.prev, hidden.next)
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

// symbol is the address of a name in the kernel, or in a module, "[name]".
func symbol(ctx context.Context, l *lab.Lab, name, module string) (uint64, error) {
	r, err := l.Exec(ctx, "/usr/bin/awk", fmt.Sprintf("$3 == %q && $4 == %q {print $1; exit}", name, module), "/proc/kallsyms")
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
	at, err := symbol(ctx, l, "do_machine_check", "")
	if err != nil {
		return err
	}
	const text = 0xffffffff81000000
	return poke(ctx, l, "Kernel code", at-text+32, []byte{0xcc})
}

// patchModule changes code of a module that runs only when a network card is pulled out.
func patchModule(ctx context.Context, l *lab.Lab) error {
	at, err := symbol(ctx, l, "virtnet_remove", "[virtio_net]")
	if err != nil {
		return err
	}
	return l.PC().Debug(ctx, false, func(m *qemu.Memory) error { return m.Write(at+32, []byte{0xcc}) })
}
