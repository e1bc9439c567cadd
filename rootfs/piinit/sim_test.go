package piinit

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"filippo.io/age"

	"portcullis/hardware"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// The simulated Pi: a card in memory that records every write, a chip that follows
// the rules of package tpmpolicy, and the volume through luks2.Payload in place of the kernel.

const simBlock = 4096

// medium is a sparse device; copying one is cheap.
type medium struct {
	size   int64
	blocks map[int64][]byte // never changed, only replaced
	mu     sync.RWMutex
}

func (m *medium) clone() *medium {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &medium{size: m.size, blocks: maps.Clone(m.blocks)}
}

func (m *medium) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off < 0 || off+int64(len(p)) > m.size {
		return 0, io.ErrUnexpectedEOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		in := at % simBlock
		c := min(len(p)-n, int(simBlock-in))
		if b := m.blocks[at/simBlock]; b != nil {
			copy(p[n:n+c], b[in:])
		} else {
			clear(p[n : n+c])
		}
		n += c
	}
	return len(p), nil
}

var zeroBlock [simBlock]byte

func (m *medium) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off+int64(len(p)) > m.size {
		return 0, fmt.Errorf("write of %d bytes at %d behind the end", len(p), off)
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		in := at % simBlock
		c := min(len(p)-n, int(simBlock-in))
		b := make([]byte, simBlock)
		copy(b, m.blocks[at/simBlock])
		copy(b[in:], p[n:n+c])
		if bytes.Equal(b, zeroBlock[:]) {
			delete(m.blocks, at/simBlock)
		} else {
			m.blocks[at/simBlock] = b
		}
		n += c
	}
	return len(p), nil
}

// event is a write or, without data, a sync; chip is the chip's memory by then.
type event struct {
	off  int64
	data []byte
	chip chipState
}

// recorder is a medium under observation.
type recorder struct {
	*medium
	chip   *chip
	events []event
	reread func(p []byte, off int64)
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.medium.ReadAt(p, off)
	if r.reread != nil {
		r.reread(p, off)
	}
	return n, err
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.events = append(r.events, event{off, bytes.Clone(p), r.chip.state})
	return r.medium.WriteAt(p, off)
}

func (r *recorder) Sync() error {
	r.events = append(r.events, event{chip: r.chip.state})
	return nil
}

// section is a stretch of a recorder.
type section struct {
	r          *recorder
	off, bytes int64
}

func (s *section) inside(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > s.bytes {
		return fmt.Errorf("%d bytes at %d of %d: %w", len(p), off, s.bytes, io.ErrUnexpectedEOF)
	}
	return nil
}

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if err := s.inside(p, off); err != nil {
		return 0, err
	}
	return s.r.ReadAt(p, s.off+off)
}

func (s *section) WriteAt(p []byte, off int64) (int, error) {
	if err := s.inside(p, off); err != nil {
		return 0, err
	}
	return s.r.WriteAt(p, s.off+off)
}

func (s *section) Sync() error { return s.r.Sync() }
func (s *section) Size() int64 { return s.bytes }

// people are those at the console: what they answer, and what they saw.
type people struct {
	mu      sync.Mutex
	out     bytes.Buffer
	answers []string
	asked   []string
}

func (p *people) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *people) Ask(_ context.Context, prompt string, _ time.Duration, _ bool) ([]byte, error) {
	p.asked = append(p.asked, prompt)
	if len(p.answers) == 0 {
		return nil, boot.ErrNoAnswer
	}
	a := p.answers[0]
	p.answers = p.answers[1:]
	return []byte(a), nil
}

func (p *people) text() string { return p.out.String() }

// recoveryKey is what first boot showed.
func (p *people) recoveryKey(t testing.TB) string {
	t.Helper()
	_, after, ok := strings.Cut(p.text(), "portcullis: recovery key (write it down, it is not shown again):\r\n")
	if !ok {
		t.Fatalf("no recovery key on the console:\n%s", p.text())
	}
	key, _, _ := strings.Cut(after, "\r\n")
	return key
}

// pi is a simulated Pi between two boots.
type pi struct {
	t       testing.TB
	built   *built // what the firmware starts
	m       *medium
	chip    *chip
	efi     bool
	dt      fs.FS
	answers []string
	zymkey  hardware.Root
	systemd []byte
	twice   bool

	// Of the last boot.
	rec    *recorder
	people *people
	host   *host
	b      *Boot
	warm   bool                      // the chip's reset line is not wired: its registers survive
	broken error                     // what the chip answers in the next boots, to everything
	deaf   error                     // what it answers when it is asked who it is
	reread func(p []byte, off int64) // what a card makes of what is read of it
}

func newPi(t testing.TB, b *built, seed string) *pi {
	return &pi{t: t, built: b, m: flashed(t, b, seed), chip: newChip()}
}

// fastPeople is a key derivation that costs nothing: the tests boot thousands of times.
var fastPeople = luks2.KDF{Type: "pbkdf2", Iterations: 1000}

// boot powers the Pi on.
func (p *pi) boot() (*Result, error) {
	if p.chip != nil {
		kept := p.chip.pcrs
		if p.chip = p.chip.reboot(p.chip.state); p.warm {
			p.chip.pcrs = kept
		}
		p.chip.broken, p.chip.deaf = p.broken, p.deaf
		if p.efi {
			p.chip.pcrs[card.PCRPhase], p.chip.pcrs[12] = [32]byte{1}, [32]byte{2}
		}
	}
	recorded := p.chip
	if recorded == nil {
		recorded = newChip()
	}
	p.rec = &recorder{medium: p.m, chip: recorded, reread: p.reread}
	p.people = &people{answers: p.answers}
	p.host = &host{r: p.rec, chip: p.chip, zymkey: p.zymkey, systemd: bytes.Clone(p.systemd), twice: p.twice}
	dt := p.dt
	if dt == nil {
		dt = fstest.MapFS{}
	}
	p.b = &Boot{Info: p.built.info, Cmdline: p.built.cmdline, Firmware: dt, EFI: p.efi, Host: p.host, Console: p.people,
		Log: boot.NewStageLog(p.people, func() time.Duration { return 0 }), Allow: func(time.Duration) {}, Random: rand.Reader,
		Times: DefaultTimes, People: fastPeople}
	var r *Result
	err := boot.Guard(func() (err error) {
		r, err = p.b.Run(context.Background())
		return err
	})
	if p.host.early {
		p.t.Error("something was written before all drivers were loaded")
	}
	return r, err
}

// must boots, or ends the test.
func (p *pi) must() *Result {
	p.t.Helper()
	r, err := p.boot()
	if err != nil {
		p.t.Fatalf("boot failed in %s: %v\n%s", p.b.Stage(), err, p.people.text())
	}
	if !p.host.space.mounted {
		p.t.Fatal("no data volume")
	}
	return r
}

// refused boots and wants a failure with this reason.
func (p *pi) refused(reason string) error {
	p.t.Helper()
	_, err := p.boot()
	if err == nil || string(boot.ReasonOf(err)) != reason {
		p.t.Fatalf("%v instead of %s\n%s", err, reason, p.people.text())
	}
	return err
}

// header reads the volume's header.
func (p *pi) header() *luks2.Header {
	p.t.Helper()
	d := p.part(card.PartCrypt)
	h, _, err := luks2.Read(d, d.Size())
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

func (p *pi) part(n int) *section {
	p.t.Helper()
	d, err := (&simCard{&recorder{medium: p.m, chip: newChip()}}).Partition(n)
	if err != nil {
		p.t.Fatal(err)
	}
	return d.(*section)
}

func (p *pi) conf() *card.Conf {
	p.t.Helper()
	d := p.part(card.PartConf)
	c, err := card.OpenConf(d, d.Size())
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// operator is somebody with an age key.
func operator(t testing.TB) (*age.X25519Identity, string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id, "schema: portcullis/seed/v1\noperator_key: " + id.Recipient().String() + "\nuplink: dhcp\n"
}
