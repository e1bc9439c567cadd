package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"portcullis/internal/config"
	"portcullis/verifier/witness"
)

// TestAttack_Crowd: whoever reaches the address that the log is read at opens connections and says nothing. One
// address has few of them, all together have not more than there is room for, and verifierd has
// files and memory left to write its log; who has gone makes room.
func TestAttack_Crowd(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") })
	go func() { ended <- servePublic(ctx, l, h) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	dial := func(last byte) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, last)}}
		c, err := d.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// in tells whether the connection is served: one that is not is closed, without a word.
	in := func(c net.Conn) bool {
		t.Helper()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		n, err := c.Read(make([]byte, 1))
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
		return n == 1
	}
	var all []net.Conn
	for one := range byte(maxStrangers / maxOfOne) {
		for n := range maxOfOne {
			c := dial(one + 1)
			if !in(c) {
				t.Fatalf("connection %d of address %d is not served", n, one)
			}
			all = append(all, c)
		}
		if one == 0 && in(dial(1)) {
			t.Error("an address has more than its connections")
		}
	}
	if in(dial(200)) {
		t.Error("there are more than there is room for")
	}
	all[0].Close()
	for end := time.Now().Add(20 * time.Second); !in(dial(200)); {
		if time.Now().After(end) {
			t.Fatal("nobody is let in after one has gone")
		}
	}
}

func TestWhoCountsAsOne(t *testing.T) {
	for address, want := range map[string]string{"192.0.2.1:5": "192.0.2.1/32", "[::ffff:192.0.2.1]:5": "192.0.2.1/32", "[2001:db8::1]:5": "2001:db8::/64", "[2001:db8::ffff:1]:6": "2001:db8::/64", "[fe80::1%lo]:5": "fe80::/64"} {
		a, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := origin(a).String(); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
	if origin(&net.UnixAddr{}).IsValid() {
		t.Error("a unix socket has an address")
	}
}

// A witness that points elsewhere is not followed: who holds its key could have the Pi ask whatever the Pi reaches.
func TestAttack_WitnessSendsUsElsewhere(t *testing.T) {
	asked := make(chan string, 4)
	elsewhere := serve1(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Method + " " + r.URL.Path }))
	at := serve1(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere+"/secret", http.StatusTemporaryRedirect)
	}))
	_, public := newSigner(t)
	key, err := witness.NewKey("w", public)
	if err != nil {
		t.Fatal(err)
	}
	w, err := witnesses(config.Verifier{Quorum: 1, Witnesses: []config.Witness{{URL: at, Key: key.String()}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		q, err := http.NewRequestWithContext(t.Context(), method, at, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := w.Clients[0].HTTP.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != http.StatusTemporaryRedirect {
			t.Errorf("%s: %d", method, a.StatusCode)
		}
	}
	select {
	case what := <-asked:
		t.Errorf("elsewhere was asked %s", what)
	default:
	}
}
