package channel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// Transport is an http.RoundTripper whose requests go to a unix socket inside the
// guest, one command of the channel each: Pipe relays the bytes there. It is for
// small questions and answers; a stream that does not end is cut off with the
// command's time.
type Transport struct {
	Channel string   // QEMU's socket of the command channel
	Pipe    []string // command in the guest that relays to the socket, which is added as its last word
	Path    string   // of the socket in the guest
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	one := req.Clone(req.Context())
	one.Close = true // the answer ends with the connection
	var b bytes.Buffer
	if err := one.Write(&b); err != nil {
		return nil, fmt.Errorf("channel: request: %w", err)
	}
	argv := append(append([]string{}, t.Pipe...), t.Path)
	r, err := Run(req.Context(), t.Channel, Request{Argv: argv, Stdin: b.Bytes()})
	if err != nil {
		return nil, err
	}
	if r.Exit != 0 {
		return nil, fmt.Errorf("channel: %s in the guest: %s%s", t.Path, bytes.TrimSpace(r.Stderr), r.Error)
	}
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(r.Stdout)), req)
}

// pipe sends what in holds to a unix socket and writes what comes back until the
// other side closes.
func pipe(ctx context.Context, in io.Reader, out io.Writer, path string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if _, err := io.Copy(c, in); err != nil {
		return err
	}
	_, err = io.Copy(out, c)
	if ctx.Err() != nil {
		return errors.New("no end of the answer")
	}
	return err
}
