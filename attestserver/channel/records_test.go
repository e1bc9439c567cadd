package channel

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
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
