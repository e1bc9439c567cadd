package channel

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"portcullis/attestserver/protocol"
)

// streamConn gives what it has in pieces of at most most bytes.
type streamConn struct {
	net.Conn
	from *bytes.Reader
	most int
}

func (c *streamConn) Read(p []byte) (int, error) { return c.from.Read(p[:min(len(p), c.most)]) }

// Reads end where records do, whatever comes in one piece, and lose nothing.
func TestRecordConnReadsOneRecordAtATime(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var stream []byte
	ends := map[int]bool{}
	for _, size := range []int{0, 1, 255, 256, 16384, 16401, 65535, 0, 0, 3} {
		stream = append(stream, 23, 3, 3, byte(size>>8), byte(size))
		ends[len(stream)] = true
		for range size {
			stream = append(stream, byte(r.Uint32()))
		}
		ends[len(stream)] = true
	}
	for _, most := range []int{1, 2, 7, 1460, 1 << 20} {
		c := &recordConn{Conn: &streamConn{from: bytes.NewReader(stream), most: most}}
		var got []byte
		for buf := make([]byte, 1<<20); ; {
			n, err := c.Read(buf)
			for at := len(got) + 1; at < len(got)+n; at++ {
				if ends[at] {
					t.Fatalf("pieces of %d: a read from %d to %d goes beyond %d", most, len(got), len(got)+n, at)
				}
			}
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, stream) {
			t.Errorf("pieces of %d: %d bytes, or others than the %d that came", most, len(got), len(stream))
		}
	}
}

// heardConn keeps what was read.
type heardConn struct {
	net.Conn
	heard []byte
}

func (c *heardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.heard = append(c.heard, p[:n]...)
	return n, err
}

// The first records are as large as the later ones, in both directions: a buffer that has
// grown for smaller ones before is twice as large as it must be.
func TestRecordsAreLargeAtOnce(t *testing.T) {
	key := func() ed25519.PrivateKey {
		_, k, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	gateway := key()
	server, err := protocol.ServerConfig(gateway)
	if err != nil {
		t.Fatal(err)
	}
	client, err := protocol.ClientConfig(key(), gateway.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	here, there := &heardConn{Conn: a}, &heardConn{Conn: b}
	data, answered := make([]byte, 40<<10), make(chan error, 1)
	go func() {
		c := tls.Client(there, client)
		_, err := c.Write(data)
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, len(data)))
		}
		answered <- err
	}()
	c := tls.Server(here, server)
	if _, err := io.ReadFull(c, make([]byte, len(data))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	for name, heard := range map[string][]byte{"the agent's": here.heard, "the gateway's": there.heard} {
		full := 0
		for len(heard) > 0 {
			n := int(binary.BigEndian.Uint16(heard[3:]))
			if n > 16<<10 {
				full++
			}
			heard = heard[recordHeader+n:]
		}
		if want := len(data) / (16 << 10); full != want {
			t.Errorf("%s: %d full records of %d bytes, want %d", name, full, len(data), want)
		}
	}
}
