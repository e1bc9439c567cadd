package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// gdbLimit bounds one conversation with the debugger's stub.
const gdbLimit = 20 * time.Second

// WritePhysical changes the machine's memory from outside, as a device with DMA
// or a debugger on its bus would: the machine stops for a moment and notices
// nothing else. It speaks the remote protocol of GDB (its manual, appendix E) to
// QEMU's stub, which takes physical addresses on request.
func (m *Machine) WritePhysical(ctx context.Context, address uint64, data []byte) error {
	path := filepath.Join(m.cfg.Dir, "gdb.sock")
	os.Remove(path)
	stub := func(where string) error {
		_, err := m.qmp.Execute(ctx, "human-monitor-command", map[string]any{"command-line": "gdbserver " + where})
		return err
	}
	if err := stub("unix:" + Escape(path) + ",server=on,wait=off"); err != nil {
		return err
	}
	err := writeByGDB(ctx, path, address, data)
	return errors.Join(err, stub("none"))
}

func writeByGDB(ctx context.Context, path string, address uint64, data []byte) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("gdb stub: %w", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(gdbLimit))
	in := bufio.NewReader(c)
	for _, p := range []string{"?", "Qqemu.PhyMemMode:1", fmt.Sprintf("M%x,%x:%x", address, len(data), data), "D"} {
		answer, err := gdbAsk(c, in, p)
		if err != nil {
			return fmt.Errorf("gdb stub: %.40s: %w", p, err)
		}
		if p != "?" && answer != "OK" {
			return fmt.Errorf("gdb stub: %.40s: answered %q", p, answer)
		}
	}
	return nil
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
