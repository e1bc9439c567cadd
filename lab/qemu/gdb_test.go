package qemu

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// stub speaks gdb's serial protocol as far as debug needs it, and keeps the orders.
func stub(t *testing.T) (path string, orders func() []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "gdb.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []string
	serve := func(c net.Conn) {
		defer c.Close()
		in := bufio.NewReader(c)
		for {
			packet, err := in.ReadString('#')
			if err != nil {
				return
			}
			if _, err := in.Discard(2); err != nil { // its checksum
				return
			}
			_, packet, _ = strings.Cut(strings.TrimSuffix(packet, "#"), "$")
			mu.Lock()
			got = append(got, packet)
			mu.Unlock()
			answer := "OK"
			if packet == "?" {
				answer = "S05"
			}
			var sum byte
			for _, b := range []byte(answer) {
				sum += b
			}
			fmt.Fprintf(c, "+$%s#%02x", answer, sum)
		}
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return path, func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(got) }
}

// QEMU keeps the mode of one connection for the next, so each says which it means.
func TestDebugSaysWhatAddressesMean(t *testing.T) {
	path, orders := stub(t)
	for _, physical := range []bool{true, false} {
		if err := debug(t.Context(), path, physical, func(*Memory) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"?", "Qqemu.PhyMemMode:1", "D", "?", "Qqemu.PhyMemMode:0", "D"}
	if got := orders(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
