package readable

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// pair is a connection of the network.
func pair(t *testing.T, network, address string) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if there, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if here, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

func TestWait(t *testing.T) {
	for _, network := range []string{"tcp4", "unix"} {
		address := map[string]string{"tcp4": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")}[network]
		for name, c := range map[string]struct {
			before bool // it happens before somebody waits
			do     func(here, there net.Conn)
		}{
			"bytes come":                {false, func(_, there net.Conn) { there.Write([]byte("x")) }},
			"bytes are there":           {true, func(_, there net.Conn) { there.Write([]byte("x")) }},
			"the other end goes":        {false, func(_, there net.Conn) { there.Close() }},
			"the other end has gone":    {true, func(_, there net.Conn) { there.Close() }},
			"the connection is closed":  {false, func(here, _ net.Conn) { here.Close() }},
			"the connection was closed": {true, func(here, _ net.Conn) { here.Close() }},
			"its time is over":          {false, func(here, _ net.Conn) { here.SetReadDeadline(time.Unix(1, 0)) }},
		} {
			t.Run(network+", "+name, func(t *testing.T) {
				here, there := pair(t, network, address)
				if c.before {
					c.do(here, there)
				}
				over := make(chan struct{})
				go func() { Wait(here); close(over) }()
				if !c.before {
					select {
					case <-over:
						t.Fatal("there was nothing to wait for")
					case <-time.After(20 * time.Millisecond):
					}
					c.do(here, there)
				}
				select {
				case <-over:
				case <-time.After(20 * time.Second):
					t.Fatal("nobody was told")
				}
			})
		}
	}
}

// What was read once does not wake who waits for more.
func TestWaitAgain(t *testing.T) {
	here, there := pair(t, "tcp4", "127.0.0.1:0")
	var b [8]byte
	for range 50 {
		there.Write(b[:4])
		Wait(here)
		if n, err := here.Read(b[:]); n != 4 || err != nil {
			t.Fatal(n, err)
		}
		over := make(chan struct{})
		go func() { Wait(here); close(over) }()
		select {
		case <-over:
			t.Fatal("there was nothing to read")
		case <-time.After(time.Millisecond):
		}
		there.Write(b[:4])
		<-over
		here.Read(b[:])
	}
}

// What is no socket is read where it is read.
func TestWaitForNothing(t *testing.T) {
	c, _ := net.Pipe()
	defer c.Close()
	Wait(c)
}
