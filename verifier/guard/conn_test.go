package guard

import (
	"net"
	"path/filepath"
	"testing"
)

// pair is a caller's connection, as the guard has it, and its other end.
func pair(t *testing.T) (*watched, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	own, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{Conn: own, leave: func() {}}
	t.Cleanup(func() { w.Close(); other.Close() })
	return w, other
}

// A caller who has nothing to send closes his half, and reads on: he is there until he
// closes all of it.
func TestCallerWhoOnlyReadsIsThere(t *testing.T) {
	w, other := pair(t)
	if err := other.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if !open(w) {
		t.Error("a caller who reads on is taken for one who is gone")
	}
	other.Close()
	if open(w) {
		t.Error("a caller who is gone is taken for one who reads")
	}
}
