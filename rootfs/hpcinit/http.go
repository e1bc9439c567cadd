package hpcinit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"portcullis/rootfs/boot"
)

// maxHead bounds an answer's status line and header, in bytes.
const maxHead = 8 << 10

// Source is the directory of the boot session's files on the gateway.
type Source struct {
	Addr netip.AddrPort
	Path string // begins and ends with a slash
}

// answer is an HTTP answer whose body is still to be read. This client speaks
// the one dialect that the gateway speaks: HTTP/1.1, one request a connection,
// bodies with a stated length.
type answer struct {
	conn  net.Conn
	body  *bufio.Reader // may hold the beginning of the body
	size  int64         // of the body, in bytes
	total int64         // of the whole file
}

func (a *answer) close() { a.conn.Close() }

// temporary wraps an error after which trying again makes sense.
type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

func isTemporary(err error) bool {
	var t temporary
	return errors.As(err, &t)
}

// get asks for the bytes [from, to) of a file, or for all of it when to is 0.
// The deadline is for the answer's head.
func get(ctx context.Context, src Source, name string, from, to int64, wait time.Duration) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", src.Addr.String())
	if err != nil {
		return nil, temporary{err}
	}
	a, err := ask(ctx, conn, src, name, from, to)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return a, nil
}

func ask(ctx context.Context, conn net.Conn, src Source, name string, from, to int64) (*answer, error) {
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline) // fails only on a closed connection, which the write below reports
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n", src.Path, name, src.Addr, VendorClass)
	if to > 0 {
		fmt.Fprintf(&b, "Range: bytes=%d-%d\r\n", from, to-1)
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return nil, temporary{err}
	}
	a := &answer{conn: conn, body: bufio.NewReaderSize(conn, maxHead)}
	head, err := readHead(a.body)
	if err != nil {
		return nil, err
	}
	if err := a.judge(head, from, to); err != nil {
		return nil, err
	}
	return a, nil
}

// readHead reads lines up to the empty one.
func readHead(r *bufio.Reader) ([]string, error) {
	var head []string
	for left := maxHead; ; {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, temporary{fmt.Errorf("read the answer's head: %w", err)}
		}
		if left -= len(line); err != nil || left < 0 {
			return nil, boot.Failf(ReasonHTTP, "the answer's head is over %d bytes long", maxHead)
		}
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" {
			return head, nil
		}
		head = append(head, text)
	}
}

// judge accepts 200 for a whole file and 206 with exactly the range asked for.
func (a *answer) judge(head []string, from, to int64) error {
	if len(head) == 0 {
		return boot.Failf(ReasonHTTP, "an answer without status line")
	}
	version, rest, _ := strings.Cut(head[0], " ")
	code, _, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(version, "HTTP/1.") || len(code) != 3 {
		return boot.Failf(ReasonHTTP, "status line %.80q", head[0])
	}
	field, err := fields(head[1:])
	if err != nil {
		return err
	}
	switch {
	case code[0] == '5' || code == "408" || code == "429":
		return temporary{boot.Failf(ReasonRefused, "the gateway answers %.80q", rest)}
	case code[0] == '4':
		return boot.Failf(ReasonRefused, "the gateway answers %.80q", rest)
	case to == 0 && code != "200", to > 0 && code != "206" && (code != "200" || from != 0):
		return boot.Failf(ReasonHTTP, "status %.80q for bytes %d to %d", rest, from, to)
	case field["transfer-encoding"] != "" || field["content-encoding"] != "":
		return boot.Failf(ReasonHTTP, "an encoded body")
	}
	if a.size, err = number(field["content-length"]); err != nil {
		return boot.Failf(ReasonHTTP, "Content-Length: %w", err)
	}
	a.total = a.size
	if code == "206" {
		var rangeTotal string
		want := fmt.Sprintf("bytes %d-%d/", from, to-1)
		got := field["content-range"]
		if !strings.HasPrefix(got, want) || a.size != to-from {
			return boot.Failf(ReasonSize, "asked for %q, got %.80q with %d bytes", want, got, a.size)
		}
		rangeTotal = got[len(want):]
		if a.total, err = number(rangeTotal); err != nil {
			return boot.Failf(ReasonHTTP, "Content-Range: %w", err)
		}
	}
	return nil
}

// fields reads header lines; names in lower case, no field twice.
func fields(lines []string) (map[string]string, error) {
	out := make(map[string]string, len(lines))
	for _, l := range lines {
		name, value, ok := strings.Cut(l, ":")
		name = strings.ToLower(name)
		if _, twice := out[name]; !ok || name == "" || strings.ContainsAny(name, " \t") || twice {
			return nil, boot.Failf(ReasonHTTP, "header line %.80q", l)
		}
		out[name] = strings.Trim(value, " \t")
	}
	return out, nil
}

// number parses a length: decimal digits only.
func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, err
	}
	if n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%.40q is not a plain number", s)
	}
	return n, nil
}
