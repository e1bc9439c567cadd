package fetch

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
)

// Hand gives an image to the guard at its socket and returns the name under which it
// can be run. The guard reads it into a file of its own that has no name, and judges
// what it has read. An *Error has the guard's reason.
func Hand(ctx context.Context, socket string, i *Image, progress Progress) (string, error) {
	from, err := i.Open()
	if err != nil {
		return "", storage(err)
	}
	body := &counted{ReadCloser: from, total: i.Size, progress: progress}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://guard/v1.41/images/load", body)
	if err != nil {
		return "", err
	}
	r.ContentLength = i.Size
	r.Header.Set("Content-Type", "application/x-tar")
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	a, err := t.RoundTrip(r)
	if err != nil {
		return "", refuse(ReasonUnreachable, "the guard: %v", err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, 64<<10))
	if err != nil {
		return "", refuse(ReasonUnreachable, "the guard: %v", err)
	}
	var said struct{ Message, Stream string }
	if err := json.Unmarshal(b, &said); err != nil {
		return "", refuse(ReasonUnreachable, "the guard answers %s", a.Status)
	}
	if a.StatusCode == http.StatusOK {
		return strings.TrimSpace(strings.TrimPrefix(said.Stream, "Loaded image: ")), nil
	}
	reason, detail, ok := strings.Cut(strings.TrimPrefix(said.Message, "portcullis: "), ": ")
	if !ok {
		return "", refuse(ReasonUnreachable, "the guard answers %s %.200s", a.Status, said.Message)
	}
	return "", refuse(reason, "%s", detail)
}

// counted tells how much was read.
type counted struct {
	io.ReadCloser
	done, total int64
	progress    Progress
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	if c.done += int64(n); n > 0 && c.progress != nil {
		c.progress("load", c.done, c.total)
	}
	return n, err
}
