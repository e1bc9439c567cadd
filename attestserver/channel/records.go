package channel

import (
	"encoding/binary"
	"net"
)

// recordHeader is the size of what each record of TLS begins with: a type, two bytes of
// version, two of length (RFC 8446 5.1).
const recordHeader = 5

// recordConn never reads beyond the end of a record. crypto/tls reads as much as comes
// and keeps a buffer for it as long as the connection lives: 57 KiB for a PC whose
// answers have several records, 18 KiB where one record at a time is in it. That is 8 MiB
// of a rack of 200 PCs, for a call of the kernel more a record.
type recordConn struct {
	net.Conn
	head [recordHeader]byte
	have int // bytes of head that were read
	left int // bytes of the record that were not
}

// Read implements net.Conn. What the bytes mean is for crypto/tls to judge.
func (c *recordConn) Read(p []byte) (int, error) {
	most := c.left
	if most == 0 {
		most = recordHeader - c.have
	}
	n, err := c.Conn.Read(p[:min(len(p), most)])
	if c.left > 0 {
		c.left -= n
		return n, err
	}
	c.have += copy(c.head[c.have:], p[:n])
	if c.have == recordHeader {
		c.have, c.left = 0, int(binary.BigEndian.Uint16(c.head[3:]))
	}
	return n, err
}
