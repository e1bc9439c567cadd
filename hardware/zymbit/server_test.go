package zymbit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"portcullis/hardware"
	"portcullis/internal/clock"
)

// fakeLibrary keeps the vendor's contract in memory. The mutex is the test's: the server
// promises to call from one goroutine at a time, and TryLock proves it.
type fakeLibrary struct {
	mu     sync.Mutex
	key    *ecdsa.PrivateKey
	breach []uint32
	hit    chan struct{}
	wrong  bool // sign with another key
	led    string
	fail   error
}

func newLibrary(t *testing.T) *fakeLibrary {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeLibrary{key: k, hit: make(chan struct{}, 1)}
}

func (l *fakeLibrary) enter() error {
	if !l.mu.TryLock() {
		return errors.New("two calls at once")
	}
	return l.fail
}

func (l *fakeLibrary) Random(n int) ([]byte, error) {
	defer l.mu.Unlock()
	if err := l.enter(); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err := rand.Read(b)
	return b, err
}

func (l *fakeLibrary) Lock(p []byte) ([]byte, error) {
	defer l.mu.Unlock()
	if err := l.enter(); err != nil {
		return nil, err
	}
	out := append([]byte("LOCK"), p...)
	for i := 4; i < len(out); i++ {
		out[i] ^= 0x80
	}
	return out, nil
}

func (l *fakeLibrary) Unlock(p []byte) ([]byte, error) {
	defer l.mu.Unlock()
	if err := l.enter(); err != nil {
		return nil, err
	}
	if len(p) < 4 || string(p[:4]) != "LOCK" {
		return nil, errors.New("not bound")
	}
	out := bytes.Clone(p[4:])
	for i := range out {
		out[i] ^= 0x80
	}
	return out, nil
}

func (l *fakeLibrary) SignDigest(d [32]byte, _ int) ([]byte, error) {
	defer l.mu.Unlock()
	if err := l.enter(); err != nil {
		return nil, err
	}
	if l.wrong {
		d[0] ^= 1
	}
	r, s, err := ecdsa.Sign(rand.Reader, l.key, d[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}

func (l *fakeLibrary) PublicKey(int) ([]byte, error) {
	defer l.mu.Unlock()
	if err := l.enter(); err != nil {
		return nil, err
	}
	b, err := l.key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	return b[1:], nil
}

func (l *fakeLibrary) Model() (string, error)    { return "FAKE\x01", nil }
func (l *fakeLibrary) Serial() (string, error)   { return "1", nil }
func (l *fakeLibrary) Firmware() (string, error) { return "2", nil }

func (l *fakeLibrary) WaitPerimeter(time.Duration) (bool, error) {
	defer l.mu.Unlock()
	if err := l.enter(); err != nil {
		return false, err
	}
	select {
	case <-l.hit:
		return true, nil
	case <-time.After(time.Millisecond):
		return false, nil
	}
}

func (l *fakeLibrary) Perimeter() ([]uint32, error) { return l.breach, nil }
func (l *fakeLibrary) ClearPerimeter() error        { l.breach = nil; return nil }
func (l *fakeLibrary) LEDOn() error                 { l.led = "on"; return nil }
func (l *fakeLibrary) LEDOff() error                { l.led = "off"; return nil }
func (l *fakeLibrary) Close() error                 { return nil }
func (l *fakeLibrary) LEDFlash(on, off time.Duration, _ uint32) error {
	l.led = on.String() + "/" + off.String()
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// serve runs a server for the test and returns its socket.
func serve(t *testing.T, lib Library, allow func(uint32) bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(NewChip(lib, 0, clock.Real{}), allow, quiet()).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return path
}

func everybody(uint32) bool { return true }

func dialed(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClientThroughServer(t *testing.T) {
	lib := newLibrary(t)
	path := serve(t, lib, everybody)
	c := dialed(t, path)
	id, err := c.Identify(t.Context())
	if err != nil || id.Model != "FAKE" || !id.UnverifiedOnHardware {
		t.Errorf("%+v, %v", id, err)
	}
	if b, err := c.Random(t.Context(), 512); err != nil || len(b) != 512 {
		t.Errorf("%d, %v", len(b), err)
	}
	blob, err := c.Seal(t.Context(), "volume", secret32)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Unseal(t.Context(), "volume", blob); err != nil || !bytes.Equal(got, secret32) {
		t.Errorf("%x, %v", got, err)
	}
	if _, err := c.Unseal(t.Context(), "other", blob); hardware.ReasonOf(err) != hardware.ReasonBadBlob {
		t.Errorf("another label: %v", err)
	}
	foreign, _ := json.Marshal(Blob{Version: 1, Locked: []byte("another module's")})
	if _, err := c.Unseal(t.Context(), "volume", foreign); hardware.ReasonOf(err) != ReasonRefused {
		t.Errorf("another module's blob: %v", err)
	}
	digest := sha256.Sum256([]byte("x"))
	sig, err := c.Sign(t.Context(), digest)
	if err != nil || !ecdsa.VerifyASN1(&lib.key.PublicKey, digest[:], sig) {
		t.Errorf("%x, %v", sig, err)
	}
	if err := c.Indicate(t.Context(), hardware.IndicateAlarm); err != nil {
		t.Error(err)
	}
	if err := c.Forget(t.Context(), blob); hardware.ReasonOf(err) != hardware.ReasonUnsupported {
		t.Error(err)
	}
	if _, err := c.Random(t.Context(), 513); err == nil {
		t.Error("513 bytes at once")
	}
	if _, err := c.Identify(t.Context()); err != nil {
		t.Errorf("a refused request ends the conversation: %v", err)
	}
}

func TestSignatureOfAnotherKeyStaysInside(t *testing.T) {
	lib := newLibrary(t)
	lib.wrong = true
	c := dialed(t, serve(t, lib, everybody))
	if sig, err := c.Sign(t.Context(), [32]byte{1}); hardware.ReasonOf(err) != hardware.ReasonFailed || sig != nil {
		t.Errorf("%x, %v", sig, err)
	}
}

func TestBreachReachesEveryListenerAlsoLateOnes(t *testing.T) {
	lib := newLibrary(t)
	path := serve(t, lib, everybody)
	early, err := dialed(t, path).Tampers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lib.mu.Lock()
	lib.breach = []uint32{0, 1700000000}
	lib.mu.Unlock()
	lib.hit <- struct{}{}
	if e := <-early; e.Source != "perimeter-1" {
		t.Errorf("%+v", e)
	}
	late, err := dialed(t, path).Tampers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e := <-late; e.Source != "perimeter-1" {
		t.Errorf("%+v", e)
	}
}

func TestStrangerIsNotServed(t *testing.T) {
	path := serve(t, newLibrary(t), func(uint32) bool { return false })
	c := dialed(t, path)
	if id, err := c.Identify(t.Context()); err == nil {
		t.Errorf("%+v", id)
	}
}

func TestManyClientsTakeTurns(t *testing.T) {
	path := serve(t, newLibrary(t), everybody)
	var wg sync.WaitGroup
	for range maxClients - 1 {
		c := dialed(t, path)
		wg.Go(func() {
			for range 20 {
				if _, err := c.Random(t.Context(), 32); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestServerSurvivesGarbage(t *testing.T) {
	path := serve(t, newLibrary(t), everybody)
	for _, b := range [][]byte{
		{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, []byte("GET / HTTP/1.1\r\n\r\n"), frameOf(`{}`), frameOf(`{"op":"random","n":100000}`),
		frameOf(`{"op":"seal","label":"x"}`), frameOf(`{"op":"sign","data":"AAAA"}`), frameOf(`{"op":"identify"}{}`), frameOf(`[`),
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) && !isReset(err) {
			t.Errorf("%q: %d bytes, %v instead of hanging up", b, n, err)
		}
		conn.Close()
	}
	if _, err := dialed(t, path).Identify(t.Context()); err != nil {
		t.Error(err)
	}
}

func isReset(err error) bool {
	var n *net.OpError
	return errors.As(err, &n) && !n.Timeout()
}

func frameOf(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func TestIndications(t *testing.T) {
	lib := newLibrary(t)
	c := NewChip(lib, 0, clock.Real{})
	seen := map[string]hardware.Indication{}
	for _, i := range []hardware.Indication{hardware.IndicateStarting, hardware.IndicateReady, hardware.IndicateWarning, hardware.IndicateAlarm} {
		if err := c.Indicate(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[lib.led]; ok {
			t.Errorf("%s and %s look alike", i, other)
		}
		seen[lib.led] = i
	}
	if err := c.Indicate(t.Context(), "disco"); err == nil {
		t.Error("an unknown state is shown")
	}
}

func FuzzProtocol(f *testing.F) {
	f.Add(frameOf(`{"op":"random","n":32}`))
	f.Add(frameOf(`{"op":"seal","label":"l","data":"AAAA"}`))
	f.Add(frameOf(`{"reason":"root-busy","text":"x"}`))
	f.Add(frameOf(`{"tamper":{"time":"2026-01-01T00:00:00Z","source":"perimeter-0"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := ReadRequest(bytes.NewReader(b)); err == nil {
			if err := q.check(); err != nil {
				t.Errorf("%+v passed: %v", q, err)
			}
		}
		if a, err := ReadReply(bytes.NewReader(b)); err == nil && len(a.Data) > 512 {
			t.Errorf("%d bytes of data", len(a.Data))
		}
	})
}
