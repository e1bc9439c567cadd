package qemu

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// gdbLimit bounds one conversation with the debugger's stub.
const gdbLimit = 20 * time.Second

// Memory is a machine's memory from outside, as a device with DMA or a debugger
// on its bus has it. The machine stands still as long as it is looked at.
type Memory struct {
	conn net.Conn
	in   *bufio.Reader
}

// Debug stops the machine, hands its memory to look and lets it go on: it notices
// nothing else. It speaks the remote protocol of GDB (its manual, appendix E) to
// QEMU's stub. Addresses are those of the kernel, or physical ones.
func (m *Machine) Debug(ctx context.Context, physical bool, look func(*Memory) error) error {
	path := filepath.Join(m.cfg.Dir, "gdb.sock")
	os.Remove(path)
	stub := func(where string) error {
		_, err := m.qmp.Execute(ctx, "human-monitor-command", map[string]any{"command-line": "gdbserver " + where})
		return err
	}
	if err := stub("unix:" + Escape(path) + ",server=on,wait=off"); err != nil {
		return err
	}
	err := debug(ctx, path, physical, look)
	return errors.Join(err, stub("none"))
}

func debug(ctx context.Context, path string, physical bool, look func(*Memory) error) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("gdb stub: %w", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(gdbLimit))
	mem := &Memory{c, bufio.NewReader(c)}
	if _, err := gdbAsk(c, mem.in, "?"); err != nil {
		return fmt.Errorf("gdb stub: %w", err)
	}
	// QEMU keeps the mode from one connection to the next.
	mode := "Qqemu.PhyMemMode:0"
	if physical {
		mode = "Qqemu.PhyMemMode:1"
	}
	if err = mem.order(mode); err == nil {
		err = look(mem)
	}
	return errors.Join(err, mem.order("D"))
}

func (m *Memory) order(packet string) error {
	answer, err := gdbAsk(m.conn, m.in, packet)
	if err == nil && answer != "OK" {
		err = fmt.Errorf("answered %q", answer)
	}
	if err != nil {
		return fmt.Errorf("gdb stub: %.40s: %w", packet, err)
	}
	return nil
}

// Write changes memory.
func (m *Memory) Write(address uint64, data []byte) error {
	return m.order(fmt.Sprintf("M%x,%x:%x", address, len(data), data))
}

// Read returns n bytes, at most 1024.
func (m *Memory) Read(address uint64, n int) ([]byte, error) {
	answer, err := gdbAsk(m.conn, m.in, fmt.Sprintf("m%x,%x", address, n))
	if err != nil {
		return nil, fmt.Errorf("gdb stub: reading %#x: %w", address, err)
	}
	b, err := hex.DecodeString(answer)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("gdb stub: reading %#x: answered %.40q", address, answer)
	}
	return b, nil
}

// WritePhysical changes bytes at a physical address.
func (m *Machine) WritePhysical(ctx context.Context, address uint64, data []byte) error {
	return m.Debug(ctx, true, func(mem *Memory) error { return mem.Write(address, data) })
}

// gdbAsk sends one packet and returns the answer's text.
func gdbAsk(c net.Conn, in *bufio.Reader, packet string) (string, error) {
	var sum byte
	for _, b := range []byte(packet) {
		sum += b
	}
	if _, err := fmt.Fprintf(c, "$%s#%02x", packet, sum); err != nil {
		return "", err
	}
	if _, err := in.ReadString('$'); err != nil { // past the acknowledgement
		return "", err
	}
	text, err := in.ReadString('#')
	if err != nil {
		return "", err
	}
	if _, err := in.Discard(2); err != nil {
		return "", err
	}
	_, err = c.Write([]byte("+"))
	return text[:len(text)-1], err
}
