package tftp

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pin "github.com/pin/tftp/v3"

	"portcullis/images/manifest"
	"portcullis/internal/event"
	"portcullis/pxe/artefact/artefacttest"
	"portcullis/pxe/ledger"
	"portcullis/pxe/session"
	"portcullis/pxe/session/sessiontest"
)

const name = sessiontest.ID + "/" + manifest.UKI

type bench struct {
	t        *testing.T
	sessions *sessiontest.Sessions
	image    *artefacttest.Image
	server   *Server
	address  string
	path     string
	mu       sync.Mutex
	events   bytes.Buffer
	stop     func()
}

// Write collects events.
func (b *bench) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.events.Write(p)
}

func (b *bench) saw(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Contains(b.events.String(), text)
}

// newBench serves on loopback; now is the clock of the request limit.
func newBench(t *testing.T, now func() time.Time) *bench {
	t.Helper()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "ledger")}
	b.sessions, b.image = sessiontest.New(t, session.UEFIPXE)
	l, _, err := ledger.Open(b.path, time.Now, func(ledger.Entry) {})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.address = conn.LocalAddr().String()
	b.server = New(Config{
		Client: netip.MustParseAddr("127.0.0.1"), Sessions: b.sessions, Ledger: l, Events: event.NewJSON(b, "pxed", time.Now), Now: now,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.server.Serve(ctx, conn) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		b.server.wait()
		l.Close()
	})
	t.Cleanup(b.stop)
	return b
}

// wait returns when no transfer is left.
func (s *Server) wait() {
	for s.room.Inside() > 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

func (b *bench) get(name, mode string, edit func(*pin.Client)) ([]byte, error) {
	b.t.Helper()
	c, err := pin.NewClient(b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	c.SetTimeout(2 * time.Second)
	c.SetRetries(2)
	if edit != nil {
		edit(c)
	}
	in, err := c.Receive(name, mode)
	if err != nil {
		return nil, err
	}
	var got bytes.Buffer
	_, err = in.WriteTo(&got)
	return got.Bytes(), err
}

func (b *bench) responses() []ledger.Entry {
	b.t.Helper()
	b.stop()
	var all []ledger.Entry
	if _, err := ledger.Read(b.path, func(l ledger.Line) error {
		if l.Kind == ledger.KindResponse {
			all = append(all, l.Entry)
		}
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	return all
}

func TestWholeImageInEveryBlockSize(t *testing.T) {
	for _, size := range []int{0, 512, 1024, 1432, 1468, 9000} {
		b := newBench(t, time.Now)
		got, err := b.get(name, "octet", func(c *pin.Client) {
			if size != 0 {
				c.SetBlockSize(size)
			}
			c.RequestTSize(true)
		})
		want := b.image.Content[manifest.UKI]
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block size %d: %d bytes, %v", size, len(got), err)
		}
		all := b.responses()
		if len(all) != 1 || all[0].Result != ledger.Complete || all[0].Length != int64(len(want)) || all[0].SHA256 != b.sessions.Image.Manifest.Artefacts[0].SHA256 {
			t.Errorf("block size %d: %+v", size, all)
		}
		if sent, _ := b.sessions.Told(); sent != int64(len(want)) {
			t.Errorf("%d bytes were reported", sent)
		}
	}
}

// raw speaks TFTP by hand.
func (b *bench) raw() (*net.UDPConn, *net.UDPAddr) {
	b.t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	to, err := net.ResolveUDPAddr("udp4", b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	return c, to
}

func rrq(fields ...string) []byte {
	return append([]byte{0, opRRQ}, strings.Join(fields, "\x00")+"\x00"...)
}

func TestSizeProbeOfUEFIIsNoFailure(t *testing.T) {
	b := newBench(t, time.Now)
	c, to := b.raw()
	// The options of OVMF, in the case that nobody forbids.
	c.WriteTo(rrq(name, "octet", "TSIZE", "0", "BlkSize", "1468", "windowsize", "4"), to)
	buf := make([]byte, 2048)
	n, from, err := c.ReadFromUDP(buf)
	if err != nil {
		t.Fatal(err)
	}
	if from.Port == to.Port {
		t.Error("the answer came from the request's port: single-port mode")
	}
	options := string(buf[2:n])
	if buf[1] != 6 || !strings.Contains(options, "tsize\x003145851\x00") || !strings.Contains(options, "blksize\x001468\x00") || strings.Contains(options, "windowsize") {
		t.Fatalf("OACK %q", buf[:n])
	}
	c.WriteTo(errorPacket(8, "User aborted the transfer"), from)
	b.server.wait()
	if all := b.responses(); len(all) != 1 || all[0].Result != ledger.Probe || all[0].Length != 0 {
		t.Errorf("%+v", all)
	}
	if !b.saw(`"event":"artefact.probe"`) || b.saw("artefact.cut") || b.saw("artefact.refused") {
		t.Error("the probe was not logged as one")
	}
}

func TestClientThatGoesAwayIsCut(t *testing.T) {
	b := newBench(t, time.Now)
	c, to := b.raw()
	c.WriteTo(rrq(name, "octet"), to)
	buf := make([]byte, 2048)
	_, from, err := c.ReadFromUDP(buf)
	if err != nil {
		t.Fatal(err)
	}
	c.WriteTo([]byte{0, 4, 0, 1}, from) // block 1 arrived
	if _, _, err := c.ReadFromUDP(buf); err != nil {
		t.Fatal(err)
	}
	c.WriteTo(errorPacket(0, "no more"), from)
	b.server.wait()
	all := b.responses()
	if len(all) != 1 || all[0].Result != ledger.Cut+":connection-lost" || all[0].Length != 512 {
		t.Errorf("%+v", all)
	}
}

func TestRefusals(t *testing.T) {
	id := sessiontest.ID
	for _, bad := range []string{
		"hpc.efi", "/hpc.efi", id + "/hpc.efi/", "/" + id + "/hpc.efi", id + "/../hpc.efi", id + "\\hpc.efi", id + "/HPC.EFI", "autoexec.ipxe",
		id + "/root.img", id + "/vmlinuz", id + "/manifest.dsse", strings.ToUpper(id) + "/hpc.efi", "../../etc/passwd", "", strings.Repeat("x", 400),
		strings.Repeat("b", 26) + "/hpc.efi",
	} {
		b := newBench(t, time.Now)
		got, err := b.get(bad, "octet", nil)
		if err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%q: %d bytes, %v", bad, len(got), err)
		}
	}
	b := newBench(t, time.Now)
	if _, err := b.get(name, "netascii", nil); err == nil || !strings.Contains(err.Error(), "octet mode only") {
		t.Errorf("netascii: %v", err)
	}
	c, err := pin.NewClient(b.address)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := c.Send(name, "octet"); err == nil {
		_, err = out.ReadFrom(strings.NewReader("mine now"))
		t.Errorf("a write was taken: %v", err)
	} else if !strings.Contains(err.Error(), "read only") {
		t.Error(err)
	}
	b.sessions.CloseAfter(0, session.ReasonClosed)
	b.sessions.Sent("", "", "", 0, 0)
	if _, err := b.get(name, "octet", nil); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("after the claim: %v", err)
	}
}

func TestInvariant02_ChangedByteEndsTheTransferAndVoidsTheSession(t *testing.T) {
	b := newBench(t, time.Now)
	changed := append([]byte(nil), b.image.Content[manifest.UKI]...)
	changed[1<<20+1] ^= 1
	b.sessions.Image = b.sessions.Image.WithSource(manifest.UKI, bytes.NewReader(changed))
	got, err := b.get(name, "octet", nil)
	if err == nil || len(got) > 1<<20 || !bytes.Equal(got, changed[:len(got)]) {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
	if strings.Contains(err.Error(), "sha256") {
		t.Errorf("our reason went to the client: %v", err)
	}
	b.server.wait()
	if _, voided := b.sessions.Told(); voided != session.VoidArtefact {
		t.Errorf("void for %q", voided)
	}
	all := b.responses()
	if len(all) != 1 || all[0].Result != ledger.Cut+":"+manifest.ReasonArtefact || all[0].Length > 1<<20 {
		t.Errorf("%+v", all)
	}
}

func TestSessionThatClosesEndsTheTransfer(t *testing.T) {
	b := newBench(t, time.Now)
	b.sessions.CloseAfter(100_000, session.ReasonSuperseded)
	got, err := b.get(name, "octet", nil)
	if err == nil || len(got) > 101_000 {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
	b.server.wait()
	if all := b.responses(); len(all) != 1 || all[0].Result != ledger.Cut+":"+session.ReasonSuperseded {
		t.Errorf("%+v", all)
	}
}
