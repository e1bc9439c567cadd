package tftp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/pxe/session"
)

func TestStrangersGetNothing(t *testing.T) {
	b := newBench(t, time.Now)
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	to, _ := net.ResolveUDPAddr("udp4", b.address)
	c.WriteTo(rrq(name, "octet"), to)
	c.WriteTo([]byte{0, opWRQ, 'x', 0, 'o', 0}, to)
	if got, err := b.get(name, "octet", nil); err != nil || len(got) == 0 { // has gone through after them
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _, err := c.ReadFrom(make([]byte, 2048)); !errors.Is(err, context.DeadlineExceeded) && err == nil {
		t.Errorf("a stranger got %d bytes", n)
	}
	if n := b.server.refused.Counts()[ReasonSource]; n != 2 {
		t.Errorf("%d refusals counted", n)
	}
}

// TestAttack_SpoofedRequests: 10 000 requests from ports that never answer
// leave a handful of goroutines, with and without the limit on requests.
func TestAttack_SpoofedRequests(t *testing.T) {
	for what, now := range map[string]func() time.Time{"with the request limit": time.Now, "with the transfer limit only": hourly()} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t, now)
			to, _ := net.ResolveUDPAddr("udp4", b.address)
			before := runtime.NumGoroutine()
			most := 0
			for i := range 100 { // ports that are closed again: the answers go nowhere
				c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					t.Fatal(err)
				}
				for range 100 {
					c.WriteTo(rrq(name, "octet", "blksize", "1468"), to)
				}
				if i%2 == 0 {
					c.Close()
				} else {
					defer c.Close()
				}
				most = max(most, runtime.NumGoroutine())
			}
			// Refused ones end as fast as the machine gets to them; what is left
			// then waits for acknowledgements that never come.
			for begin := time.Now(); runtime.NumGoroutine()-before > 15; time.Sleep(10 * time.Millisecond) {
				if time.Since(begin) > 3*time.Second {
					t.Errorf("%d goroutines more than before", runtime.NumGoroutine()-before)
					break
				}
			}
			t.Logf("at most %d goroutines, %d before", most, before)
			b.server.wait()
			now := time.Now()
			for time.Since(now) < 20*time.Second {
				if got, err := b.get(name, "octet", nil); err == nil && len(got) > 0 {
					return
				}
			}
			t.Error("an honest client is not served afterwards")
		})
	}
}

// hourly makes requests an hour apart for the limit.
func hourly() func() time.Time {
	var mu sync.Mutex
	t := time.Now()
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		t = t.Add(time.Hour)
		return t
	}
}

// FuzzTFTPName: only `<session>/hpc.efi` is a name, whatever the request around it.
func FuzzTFTPName(f *testing.F) {
	f.Add(rrq(name, "octet", "tsize", "0", "blksize", "1468"))
	f.Add(rrq(name, "OCTET"))
	f.Add(rrq("../"+name, "octet"))
	f.Add([]byte{0, opWRQ, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		normal, reason := parseRequest(b)
		if (reason == "") != (normal != nil) {
			t.Fatalf("%q and %q", normal, reason)
		}
		if normal == nil {
			return
		}
		fields := strings.Split(string(normal[2:]), "\x00")
		sid, file, ok := split(fields[0])
		if !ok || sid+"/"+file != fields[0] || !session.ValidID(sid) || file != manifest.UKI || !strings.EqualFold(fields[1], "octet") {
			t.Fatalf("%q came through", normal)
		}
		if len(normal) > maxRequest {
			t.Fatalf("%d bytes long", len(normal))
		}
	})
}

// TestLostPacketsCostASecondEach drops every 400th datagram that the client sends.
func TestLostPacketsCostASecondEach(t *testing.T) {
	b := newBench(t, time.Now)
	c, to := b.raw()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	begin := time.Now()
	c.WriteTo(rrq(name, "octet", "blksize", "1468"), to)
	var got []byte
	buf := make([]byte, 2048)
	want, lost := uint16(0), 0
	for n := 0; ; n++ {
		size, from, err := c.ReadFromUDP(buf)
		if err != nil {
			t.Fatal(err)
		}
		block := uint16(buf[2])<<8 | uint16(buf[3])
		switch {
		case buf[1] == 6:
			block = 0
		case block == want+1:
			got = append(got, buf[4:size]...)
			want++
		}
		if n%400 == 399 {
			lost++
			continue
		}
		c.WriteTo([]byte{0, 4, byte(block >> 8), byte(block)}, from)
		if buf[1] == 3 && size < 1468+4 {
			break
		}
	}
	if !bytes.Equal(got, b.image.Content[manifest.UKI]) {
		t.Errorf("%d bytes came", len(got))
	}
	if took := time.Since(begin); lost == 0 || took > time.Duration(lost)*1500*time.Millisecond+5*time.Second {
		t.Errorf("%d losses took %s", lost, took)
	}
}
