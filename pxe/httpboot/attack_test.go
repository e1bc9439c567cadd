package httpboot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"portcullis/images/manifest"
	"portcullis/pxe/session"
	"portcullis/pxe/session/sessiontest"
)

func TestStrangersAndCrowdsAreCutOff(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	stranger := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	c, err := stranger.Dial("tcp4", b.address)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", Path(sessiontest.ID, manifest.UKI))
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.Copy(io.Discard, c); n != 0 {
		t.Errorf("a stranger got %d bytes, %v", n, err)
	}
	c.Close()
	if c, err = stranger.Dial("tcp4", b.address); err != nil { // says nothing, holds nothing
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(headerTimeout / 2))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a stranger's connection stays open: %v", err)
	}
	c.Close()
	var crowd []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp4", b.address)
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, c)
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) { // until the last of them is accepted
		if _, _, err := b.do(http.MethodGet, Path(sessiontest.ID, manifest.UKI)); err != nil {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("there is no limit")
		}
	}
	for _, c := range crowd {
		c.Close()
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if resp, _, err := b.do(http.MethodHead, Path(sessiontest.ID, manifest.UKI)); err == nil && resp.StatusCode == 200 {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("nobody is served after the crowd has gone")
		}
	}
}

func TestAttack_HugeHeader(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	c, err := net.Dial("tcp4", b.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	go fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", Path(sessiontest.ID, manifest.UKI), strings.Repeat("x", 1<<20))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil && resp.StatusCode == 200 {
		t.Error("a header of 1 MiB was taken")
	}
}

func TestAttack_RequestFlood(t *testing.T) {
	b := newBench(t, session.UEFIHTTP)
	client := &http.Client{}
	refused := 0
	for range requestBurst + 200 {
		resp, err := client.Head("http://" + b.address + Path(sessiontest.ID, manifest.Envelope))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused == 0 {
		t.Error("no request was refused")
	}
}

// FuzzHTTPRange: a range is inside the representation, or refused, or the whole.
func FuzzHTTPRange(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=-1", "bytes=-0", "bytes=5-9", "bytes=0-1,2-3", "bytes=9223372036854775807-", "bytes=-9223372036854775808", "bytes=--1", "bytes= 1-2"} {
		f.Add(s, int64(100))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size <= 0 {
			return
		}
		r, ok := parseRange(header, size)
		switch {
		case !ok && r != byteRange{}:
			t.Fatalf("%q of %d: refused with %+v", header, size, r)
		case ok && (r.Offset < 0 || r.Length <= 0 || r.Offset > size-r.Length):
			t.Fatalf("%q of %d: %+v", header, size, r)
		case ok && r.Whole && (r.Offset != 0 || r.Length != size):
			t.Fatalf("%q of %d: %+v", header, size, r)
		}
	})
}

// FuzzHTTPPath: only what Path makes is a path.
func FuzzHTTPPath(f *testing.F) {
	f.Add("/b/" + sessiontest.ID + "/hpc.efi")
	f.Add("/b//../x")
	f.Fuzz(func(t *testing.T, path string) {
		sid, name, ok := split(path)
		if ok && (Path(sid, name) != path || !session.ValidID(sid) || names[name] == "") {
			t.Fatalf("%q was read as %q, %q", path, sid, name)
		}
	})
}

// BenchmarkGet is the whole way of a root image's bytes, checks and ledger included.
func BenchmarkGet(b *testing.B) {
	bench := newBench(b, session.UEFIHTTP)
	bench.server.limit.SetLimit(rate.Inf)
	b.SetBytes(int64(len(bench.image.Content[manifest.Root])))
	for b.Loop() {
		if _, _, err := bench.do(http.MethodGet, Path(sessiontest.ID, manifest.Root)); err != nil {
			b.Fatal(err)
		}
	}
}
