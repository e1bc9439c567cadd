// Package server puts pxed together: image, sessions, served-ledger, DHCP, TFTP,
// HTTP and the Boot service. cmd/pxed calls Run; nobody else does.
package server

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/images/manifest"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/journal"
	"portcullis/internal/rpc"
	"portcullis/pxe/artefact"
	"portcullis/pxe/dhcp"
	"portcullis/pxe/httpboot"
	"portcullis/pxe/ledger"
	"portcullis/pxe/session"
	"portcullis/pxe/tftp"
)

const (
	// syncEvery bounds what a power cut can take from the served-ledger; a
	// claim waits for its own sync in any case.
	syncEvery = time.Second
	// bindEvery is how often an address that does not exist yet is tried.
	bindEvery = 250 * time.Millisecond
	portTFTP  = 69
	// reassertEvery is how soon a gatewayd that lost its state is told.
	reassertEvery = 2 * time.Second
)

// state is what pxed keeps while it runs.
type state struct {
	cfg      *config.Config
	events   *event.Writer
	store    *artefact.Store
	ledger   *ledger.Ledger
	journal  *journal.Journal
	sessions *session.Manager
	asked    atomic.Int64 // when the Boot service was asked about a session last, Unix nanoseconds
	loaded   sync.Mutex   // one look at the image directory at a time, so that events are in order
}

// Run serves until ctx ends. It fails where its state cannot be trusted or a
// socket is taken; what may come later (gatewayd, the address, the interface,
// an image) it waits for, and answers no boot request until it is there. With rest
// above 0 it ends with ErrDone that long after a boot is done.
func Run(ctx context.Context, cfg *config.Config, rest time.Duration, events *event.Writer) error {
	s := &state{cfg: cfg, events: events}
	if err := s.open(); err != nil {
		return err
	}
	defer s.close()
	socket, err := rpc.Listen(filepath.Join(cfg.RunDir, rpc.BootSocket), cfg.PXE.AllowedUIDs)
	if err != nil {
		return err
	}
	defer socket.Close()
	return s.serve(ctx, socket, rest)
}

// open reads what was before and the image.
func (s *state) open() error {
	dir := filepath.Join(s.cfg.StateDir, "pxed")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	policy, err := imagePolicy(s.cfg)
	if err != nil {
		return err
	}
	floor, err := manifest.OpenFloor(filepath.Join(dir, "image-floor"))
	if err != nil {
		return err
	}
	s.store = artefact.NewStore(s.cfg.PXE.ImageDir, policy, floor, time.Now)
	var history session.History
	j, report, err := journal.Open(filepath.Join(dir, "sessions"), func(r journal.Record) error { return history.Session(r.Payload) })
	if err != nil {
		return err
	}
	s.journal = j
	s.torn("sessions", report)
	s.ledger, report, err = ledger.Open(ledger.Path(s.cfg.StateDir), time.Now, history.Served)
	if err != nil {
		return errors.Join(err, j.Close())
	}
	s.torn(ledger.File, report)
	s.sessions = session.New(session.Config{
		MAC: s.cfg.Link.PCMAC, Address: s.cfg.Link.PCAddress, ClaimWindow: s.cfg.PXE.ClaimWindow,
		Clock: clock.Real{}, Events: s.events, Gateway: dialGateway(s.cfg.RunDir), Journal: j, SyncLedger: s.ledger.Sync,
	})
	image, _ := s.image() // refused: reported, and DHCP stays silent
	if err := s.sessions.Restore(&history, image); err != nil {
		return errors.Join(err, s.close())
	}
	return nil
}

func (s *state) torn(name string, r journal.Report) {
	if r.TornTail > 0 {
		s.events.Emit("journal.cut", event.Fields{"journal": name, "bytes": r.TornTail, "records": r.Records})
	}
}

func (s *state) close() error { return errors.Join(s.ledger.Close(), s.journal.Close()) }

// image returns the image to boot from now and reports each change of it.
func (s *state) image() (*artefact.Image, error) {
	s.loaded.Lock()
	defer s.loaded.Unlock()
	image, change, err := s.store.Current()
	switch change {
	case artefact.Loaded:
		s.events.Emit("image.loaded", event.Fields{
			"image": image.Manifest.Image, "version": image.Manifest.Version, "profile": image.Manifest.Profile,
			"lab": image.Manifest.LabChannel, "manifest": image.Manifest.Fingerprint(),
		})
	case artefact.Refused:
		s.events.Emit("image.refused", event.Fields{"reason": artefact.Reason(err), "detail": err.Error()})
	}
	return image, err
}

// serve runs every part; the first that fails ends all.
func (s *state) serve(ctx context.Context, socket net.Listener, rest time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	address := s.cfg.Link.Address.Addr()
	web, err := bind(ctx, func() (net.Listener, error) {
		return net.Listen("tcp4", netip.AddrPortFrom(address, s.cfg.PXE.HTTPPort).String())
	})
	if web == nil {
		return err
	}
	defer web.Close()
	files, err := bind(ctx, func() (net.PacketConn, error) {
		return net.ListenPacket("udp4", netip.AddrPortFrom(address, portTFTP).String())
	})
	if files == nil {
		return err
	}
	defer files.Close()

	bound := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	run := func(name string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewBootHandler(heard{boot{s.sessions}, func() { s.asked.Store(time.Now().UnixNano()) }}))
	run("boot service", func() error { return rpc.Serve(ctx, socket, mux) })
	run("http", func() error { return s.http().Serve(ctx, web) })
	run("tftp", func() error { return s.tftp().Serve(ctx, files) })
	run("dhcp", func() error { return s.dhcp().Run(ctx, func() { once.Do(func() { close(bound) }) }) })
	run("served-ledger", func() error { return each(ctx, syncEvery, s.ledger.Sync) })
	run("rest", func() error { return s.rest(ctx, rest) })
	run("gateway", func() error { return each(ctx, reassertEvery, func() error { s.sessions.Reassert(ctx); return nil }) })
	select {
	case <-bound:
		s.events.Emit("ready", event.Fields{"interface": s.cfg.Link.Interface, "address": address.String()})
	case <-ctx.Done():
	}
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// each calls f at every interval until it fails or ctx ends.
func each(ctx context.Context, interval time.Duration, f func() error) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := f(); err != nil {
				return err
			}
		}
	}
}

func (s *state) http() *httpboot.Server {
	return httpboot.New(httpboot.Config{
		Client: s.cfg.Link.PCAddress, Base: s.baseURL(), Sessions: s.sessions, Ledger: s.ledger, Events: s.events, Now: time.Now,
	})
}

func (s *state) tftp() *tftp.Server {
	return tftp.New(tftp.Config{
		Client: s.cfg.Link.PCAddress, Sessions: s.sessions, Ledger: s.ledger, Events: s.events, Now: time.Now,
	})
}

func (s *state) dhcp() *dhcp.Service {
	mac, _ := net.ParseMAC(s.cfg.Link.PCMAC) // the configuration has checked it
	policy := dhcp.Policy{
		Server: s.cfg.Link.Address, Lease: s.cfg.Link.PCAddress, BaseURL: s.baseURL(), AgentPort: s.cfg.Attest.Port, AllowBIOS: s.cfg.PXE.AllowBIOS,
	}
	copy(policy.MAC[:], mac)
	return dhcp.NewService(dhcp.Config{
		Interface: s.cfg.Link.Interface, Policy: policy, Sessions: s.sessions, Image: s.image,
		Ledger: s.ledger, Events: s.events, Now: time.Now,
	})
}

func (s *state) baseURL() string {
	base := "http://" + s.cfg.Link.Address.Addr().String()
	if s.cfg.PXE.HTTPPort != 80 {
		base += ":" + strconv.Itoa(int(s.cfg.PXE.HTTPPort))
	}
	return base
}

// bind opens a socket as soon as its address exists. It returns nothing when
// ctx ends before that.
func bind[T any](ctx context.Context, open func() (T, error)) (T, error) {
	for {
		c, err := open()
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return c, nil
		case <-time.After(bindEvery):
		}
	}
}

// imagePolicy turns the configuration into what images are held against.
func imagePolicy(cfg *config.Config) (artefact.Policy, error) {
	p := artefact.Policy{Floor: cfg.PXE.MinVersion, AllowLabChannel: cfg.PXE.AllowLabImage}
	p.Trust.Threshold = cfg.PXE.Threshold
	for _, k := range cfg.PXE.ReleaseKeys {
		b, err := base64.StdEncoding.DecodeString(k)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return p, fmt.Errorf("pxe.release_keys: %q is no Ed25519 public key", k)
		}
		p.Trust.ReleaseKeys = append(p.Trust.ReleaseKeys, b)
	}
	return p, nil
}
