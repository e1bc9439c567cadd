package piinit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
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
	"portcullis/hardware/combined"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
	"portcullis/images/luks2"
	"portcullis/images/verity"
	"portcullis/rootfs/boot"
)

// The simulated Pi: a card in memory that records every write, a chip that follows
// the rules of package tpmpolicy, and the volume through luks2.Payload in place of the kernel.

const simBlock = 4096

// medium is a sparse device; copying one is cheap.
type medium struct {
	size   int64
	blocks map[int64][]byte // never changed, only replaced
}

func (m *medium) clone() *medium { return &medium{m.size, maps.Clone(m.blocks)} }

func (m *medium) ReadAt(p []byte, off int64) (int, error) {
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

// chipState is what a chip keeps without power.
type chipState struct {
	seed    [32]byte
	counter uint64
}

// chip is a TPM as far as pi-init sees it.
type chip struct {
	state   chipState
	pcrs    map[int][32]byte
	config  tpm2.Config
	unseals int
	broken  error // every call answers with it
}

func newChip() *chip {
	c := &chip{pcrs: map[int][32]byte{}}
	rand.Read(c.state.seed[:])
	return c
}

// reboot is a power cycle with the memory that is given.
func (c *chip) reboot(s chipState) *chip { return &chip{state: s, pcrs: map[int][32]byte{}} }

func chipError(r hardware.Reason, format string, args ...any) error {
	return &hardware.Error{Reason: r, Err: fmt.Errorf(format, args...)}
}

func (c *chip) Identify(context.Context) (hardware.Identity, error) {
	return hardware.Identity{Backend: hardware.BackendTPM2, Manufacturer: "SIM", Model: "chip"}, c.broken
}

func (c *chip) Random(_ context.Context, n int) ([]byte, error) {
	b := make([]byte, n)
	rand.Read(b)
	return b, c.broken
}

func (c *chip) aead() cipher.AEAD {
	k, err := aes.NewCipher(c.state.seed[:])
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(k)
	if err != nil {
		panic(err)
	}
	return a
}

// allowed is what the chip's policy says now.
func (c *chip) allowed() error {
	if c.config.Policy == nil {
		return chipError(tpm2.ReasonPolicyFile, "no policy")
	}
	s := c.config.Policy.Branch(c.config.Platform)
	if s == nil {
		return chipError(tpm2.ReasonPolicyFile, "no branch for %s", c.config.Platform)
	}
	if err := s.Verify(c.config.PolicyKey); err != nil {
		return chipError(tpm2.ReasonPolicyFile, "%v", err)
	}
	if c.state.counter > s.Sequence {
		return chipError(hardware.ReasonPolicy, "counter %d, release %d", c.state.counter, s.Sequence)
	}
	for i, want := range s.PCRs {
		if c.pcrs[i] != want {
			return chipError(hardware.ReasonPolicy, "register %d", i)
		}
	}
	return nil
}

func (c *chip) Seal(_ context.Context, label string, secret []byte) (json.RawMessage, error) {
	if err := c.allowed(); err != nil {
		return nil, err
	}
	nonce := make([]byte, 12)
	rand.Read(nonce)
	return json.Marshal(append(nonce, c.aead().Seal(nil, nonce, secret, []byte(label+string(c.config.Platform)))...))
}

func (c *chip) Unseal(_ context.Context, label string, blob json.RawMessage) ([]byte, error) {
	c.unseals++
	if c.broken != nil {
		return nil, c.broken
	}
	var b []byte
	if err := json.Unmarshal(blob, &b); err != nil || len(b) < 12 {
		return nil, chipError(hardware.ReasonBadBlob, "%v", err)
	}
	if err := c.allowed(); err != nil {
		return nil, err
	}
	secret, err := c.aead().Open(nil, b[:12], b[12:], []byte(label+string(c.config.Platform)))
	if err != nil {
		return nil, chipError(hardware.ReasonForeignBlob, "%v", err)
	}
	return secret, nil
}

func (c *chip) Sign(context.Context, [32]byte) ([]byte, error)          { return nil, c.broken }
func (c *chip) Forget(context.Context, json.RawMessage) error           { return c.broken }
func (c *chip) Tampers(context.Context) (<-chan hardware.Tamper, error) { return nil, c.broken }
func (c *chip) Indicate(context.Context, hardware.Indication) error     { return c.broken }
func (c *chip) Close() error                                            { return nil }
func (c *chip) SetupLockout(context.Context, tpm2.Lockout) error        { return c.broken }
func (c *chip) ReadPCR(_ context.Context, pcr int) ([32]byte, error)    { return c.pcrs[pcr], nil }
func (c *chip) Extend(_ context.Context, pcr int, data []byte) error {
	if c.broken != nil {
		return c.broken
	}
	c.pcrs[pcr] = tpmpolicy.Extend(c.pcrs[pcr], data)
	return nil
}
func (c *chip) Cap(ctx context.Context) error {
	return c.Extend(ctx, card.PCRPhase, []byte(card.PhaseLeave))
}

func (c *chip) MeasureVolumeKey(ctx context.Context, name, uuid string, mac func(crypto.Hash, []byte) ([]byte, error)) error {
	d, err := mac(crypto.SHA256, []byte("cryptsetup:"+name+":"+uuid))
	if err != nil {
		return err
	}
	return c.Extend(ctx, card.PCRVolumeKey, d)
}

func (c *chip) RaiseCounter(_ context.Context, to uint64) error {
	if c.state.counter > to {
		return chipError(tpm2.ReasonCounterAhead, "%d over %d", c.state.counter, to)
	}
	c.state.counter = to
	return nil
}

// signer makes releases: their keys, systems and cards.
type signer struct {
	policy  *ecdsa.PrivateKey
	release ed25519.PublicKey
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{k, pub}
}

// built is one release.
type built struct {
	info    *card.Info
	cmdline string
	root    []byte // root.img
	boot    map[string][]byte
	release card.Release
}

const simNVIndex = 0x01800077

func (s *signer) build(t testing.TB, sequence uint64) *built {
	t.Helper()
	data := make([]byte, 300*verity.BlockSize) // three levels of hashes would need more; two are enough here
	rand.Read(data)
	salt := make([]byte, 32)
	rand.Read(salt)
	tree, err := verity.Build(bytes.NewReader(data), int64(len(data)), salt)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&s.policy.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b := &built{
		info: &card.Info{Schema: card.InfoSchema, Model: card.ModelQEMU, Profile: card.ProfileDev, Sequence: sequence,
			ReleaseKeys: [][]byte{s.release}, Threshold: 1, PolicyKey: der, NVIndex: simNVIndex},
		cmdline: fmt.Sprintf("%s roothash=%s portcullis.verity=%s,%d,%d console=ttyAMA0", card.CmdlineMark, tree.Root(), hex.EncodeToString(salt), tree.DataBlocks, tree.DataBlocks),
		root:    append(data, tree.Hashes...),
		release: card.Release{Sequence: sequence, Root: tree.RootHash},
	}
	b.boot = map[string][]byte{card.KernelFile: []byte("kernel"), card.InitramfsFile: fmt.Appendf(nil, "initramfs %d", sequence), card.CmdlineFile: []byte(b.cmdline)}
	s.sign(t, b)
	return b
}

// sign makes policy.json for both platforms.
func (s *signer) sign(t testing.TB, b *built) {
	t.Helper()
	self := tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(card.BootDigest(b.boot), b.cmdline)...)
	efi := tpmpolicy.Predict(map[int][32]byte{card.PCRPhase: {1}, 12: {2}}, tpmpolicy.Event{PCR: card.PCRPhase, Data: []byte(card.PhaseEnter)})
	f := &tpmpolicy.File{Version: tpmpolicy.FileVersion, Sequence: b.info.Sequence}
	for p, pcrs := range map[tpmpolicy.Platform]map[int][32]byte{tpmpolicy.PlatformSelf: self, tpmpolicy.PlatformEFI: efi} {
		signed, err := tpmpolicy.Sign(s.policy, tpmpolicy.Branch{Platform: p, Sequence: b.info.Sequence, PCRs: pcrs, NVIndex: simNVIndex})
		if err != nil {
			t.Fatal(err)
		}
		f.Branches = append(f.Branches, signed)
	}
	text, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.boot[card.PolicyFile] = text
}

// simCardSize is the size of a simulated card: two systems and some data.
const simCardSize = 1600 << 20

// flashed is a card with a release as an image leaves it, then grown to its size,
// with the operator's settings when seed is not empty.
func flashed(t testing.TB, b *built, seed string) *medium {
	t.Helper()
	m := &medium{simCardSize, map[int64][]byte{}}
	conf, err := card.ConfFiles(b.release)
	if err != nil {
		t.Fatal(err)
	}
	if seed != "" {
		if conf[card.SeedFile], err = card.SeedImage("seed", []byte(seed)); err != nil {
			t.Fatal(err)
		}
	}
	table := &gpt.Table{DiskID: gpt.FromBytes([16]byte{1})}
	at := int64(card.Align)
	for i, p := range []struct {
		name  string
		size  int64
		files map[string][]byte
	}{
		{card.LabelConf, card.ConfSize, conf}, {card.LabelBootA, card.BootSize, b.boot}, {card.LabelBootB, card.BootSize, map[string][]byte{}},
		{card.LabelSeed, (int64(len(b.root)) + card.Align - 1) / card.Align * card.Align, nil}, {card.LabelCrypt, card.CryptHeader, nil},
	} {
		table.Partitions = append(table.Partitions, gpt.Partition{Number: i + 1, Name: p.name, Type: gpt.TypeLinux, ID: gpt.FromBytes([16]byte{2, byte(i)}),
			First: uint64(at / card.SectorSize), Last: uint64((at+p.size)/card.SectorSize) - 1})
		part := &section{&recorder{medium: m, chip: newChip()}, at, p.size}
		if p.files != nil {
			if err := fat.Build(part, fat.Options{Size: p.size, Label: p.name}, p.files); err != nil {
				t.Fatal(err)
			}
		}
		if p.name == card.LabelSeed {
			part.WriteAt(b.root, 0)
		}
		at += p.size
	}
	table.Sectors = uint64((at + card.Align) / card.SectorSize)
	if err := table.Write(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// host is the Host of a simulated Pi.
type host struct {
	r       *recorder
	chip    *chip // nil: none
	zymkey  hardware.Root
	volumes int
	space   *space
}

func (h *host) Card(context.Context) (Card, error) { return &simCard{h.r}, nil }

func (h *host) TPM(_ context.Context, config tpm2.Config) (TPM, error) {
	if h.chip == nil {
		return nil, chipError(hardware.ReasonAbsent, "no device")
	}
	h.chip.config = config
	return h.chip, nil
}

func (h *host) Root(_ context.Context, b hardware.Backend, tpm TPM) (hardware.Root, error) {
	switch {
	case b == hardware.BackendTPM2 && tpm != nil:
		return tpm, nil
	case b == hardware.BackendZymbit && h.zymkey != nil:
		return h.zymkey, nil
	case b == hardware.BackendCombined && h.zymkey != nil && tpm != nil:
		return combined.New(tpm, h.zymkey), nil
	}
	return nil, chipError(hardware.ReasonAbsent, "no %s", b)
}

func (h *host) SystemdToken(context.Context, []byte) ([]byte, error) {
	return nil, errors.New("no systemd here")
}

func (h *host) Unlock(slot int, passphrase []byte) (Volume, error) {
	c := &simCard{h.r}
	d, err := c.Partition(card.PartCrypt)
	if err != nil {
		return nil, err
	}
	header, _, err := luks2.Read(d, d.Size())
	if err != nil {
		return nil, err
	}
	key, _, err := header.Unlock(d, passphrase, slot)
	if luks2.ReasonOf(err) == luks2.ReasonPassphrase {
		return nil, ErrPassphrase
	}
	if err != nil {
		return nil, err
	}
	h.volumes++
	return &simVolume{h, header, d, key}, nil
}

type simCard struct{ r *recorder }

func (c *simCard) Size() int64 { return c.r.size }
func (c *simCard) Table() (*gpt.Table, gpt.Health, error) {
	return gpt.Read(c.r, uint64(c.r.size/card.SectorSize))
}
func (c *simCard) WriteTable(_ context.Context, t *gpt.Table) error { return t.Write(c.r) }
func (c *simCard) Partition(n int) (Disk, error) {
	t, _, err := c.Table()
	if err != nil {
		return nil, err
	}
	for _, p := range t.Partitions {
		if p.Number == n {
			return &section{c.r, p.Offset(), p.Size()}, nil
		}
	}
	return nil, fmt.Errorf("no partition %d", n)
}

type simVolume struct {
	h      *host
	header *luks2.Header
	d      Disk
	key    []byte
}

func (v *simVolume) HMAC(h crypto.Hash, message []byte) ([]byte, error) {
	m := hmac.New(h.New, v.key)
	m.Write(message)
	return m.Sum(nil), nil
}

func (v *simVolume) Map() (Space, error) {
	p, err := v.header.Payload(v.d, v.key)
	if err != nil {
		return nil, err
	}
	v.h.space = &space{payload: p, d: v.d}
	return v.h.space, nil
}

// space is the inside of the volume.
type space struct {
	payload *luks2.Payload
	d       Disk
	verity  io.ReaderAt
	mounted bool
}

// window is a stretch of the payload.
type window struct {
	s         *space
	off, size int64
}

func (w *window) ReadAt(p []byte, off int64) (int, error)  { return w.s.payload.ReadAt(p, w.off+off) }
func (w *window) WriteAt(p []byte, off int64) (int, error) { return w.s.payload.WriteAt(p, w.off+off) }
func (w *window) Sync() error                              { return w.s.d.Sync() }
func (w *window) Size() int64                              { return w.size }

func (s *space) System(slot card.Slot) Disk {
	if slot == card.SlotB {
		return &window{s, card.SystemSize, card.SystemSize}
	}
	return &window{s, 0, card.SystemSize}
}

func (s *space) Data() Disk {
	return &window{s, 2 * card.SystemSize, s.payload.Size() - 2*card.SystemSize}
}

// verified refuses every read where the slot is not what was signed.
type verified struct {
	io.ReaderAt
	err error
}

func (v *verified) ReadAt(p []byte, off int64) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	return v.ReaderAt.ReadAt(p, off)
}

func (s *space) OpenVerity(slot card.Slot, v boot.Verity) (io.ReaderAt, error) {
	d := s.System(slot)
	salt, err := hex.DecodeString(v.Salt)
	if err != nil {
		return nil, err
	}
	r := &verified{ReaderAt: d}
	tree, err := verity.Build(d, int64(v.DataBlocks)*boot.BlockSize, salt)
	if err != nil {
		return nil, err
	}
	stored := make([]byte, len(tree.Hashes))
	if _, err := d.ReadAt(stored, int64(v.HashStart)*boot.BlockSize); err != nil {
		return nil, err
	}
	if tree.Root() != v.RootHash || !bytes.Equal(stored, tree.Hashes) {
		r.err = errors.New("a block is not what was signed")
	}
	s.verity = r
	return r, nil
}

func (s *space) MountSystem() error {
	_, err := s.verity.ReadAt(make([]byte, boot.BlockSize), 0)
	return err
}

// simMagic stands for an ext4 superblock, which mkfs writes last.
var simMagic = []byte("a file system\n")

func (s *space) Format(context.Context, string) error {
	d := s.Data()
	for at := int64(64 << 10); at > 0; at -= 16 << 10 {
		if _, err := d.WriteAt(bytes.Repeat([]byte{7}, 16<<10), at); err != nil {
			return err
		}
	}
	if _, err := d.WriteAt(simMagic, 1024); err != nil {
		return err
	}
	return d.Sync()
}

func (s *space) Check(context.Context) (bool, error) {
	b := make([]byte, len(simMagic))
	if _, err := s.Data().ReadAt(b, 1024); err != nil || !bytes.Equal(b, simMagic) {
		return false, fmt.Errorf("no file system (%v)", err)
	}
	return false, nil
}

func (s *space) MountData() error { s.mounted = true; return nil }

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

	// Of the last boot.
	rec    *recorder
	people *people
	host   *host
	b      *Boot
}

func newPi(t testing.TB, b *built, seed string) *pi {
	return &pi{t: t, built: b, m: flashed(t, b, seed), chip: newChip()}
}

// fastPeople is a key derivation that costs nothing: the tests boot thousands of times.
var fastPeople = luks2.KDF{Type: "pbkdf2", Iterations: 1000}

// boot powers the Pi on.
func (p *pi) boot() (*Result, error) {
	if p.chip != nil {
		p.chip = p.chip.reboot(p.chip.state)
		if p.efi {
			p.chip.pcrs[card.PCRPhase], p.chip.pcrs[12] = [32]byte{1}, [32]byte{2}
		}
	}
	recorded := p.chip
	if recorded == nil {
		recorded = newChip()
	}
	p.rec = &recorder{medium: p.m, chip: recorded}
	p.people = &people{answers: p.answers}
	p.host = &host{r: p.rec, chip: p.chip, zymkey: p.zymkey}
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
