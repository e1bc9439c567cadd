package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/gpt"
	"portcullis/images/luks2"
	"portcullis/lab/pi"
)

// volumeUUID is the peer's: it is in its initramfs, which is cached.
const volumeUUID = "5d3f9a52-6c1e-4b7e-9a40-c2a1f0b7e611"

// peer boots a card with Debian's initramfs and the root image of ours, in a
// volume of the same LUKS parameters as ours, whose key its chip keeps.
type peer struct {
	dir     string
	card    string
	chip    string // the chip's state
	bytes   int    // of the initramfs that boots
	piBytes int    // of the one for the Pi 4's kernel
	release string
	built   time.Duration
}

func newPeer(ctx context.Context, repo string, p *pi.Provisioned, say func(string)) (*peer, error) {
	cache := filepath.Join(repo, "build", "cache")
	m, err := buildInitramfs(ctx, cache, guestKernel, guestChip, volumeUUID, say)
	if err != nil {
		return nil, err
	}
	own, err := pi.BootFiles(p.Card.Image, card.PartBootA)
	if err != nil {
		return nil, err
	}
	onPi, err := buildInitramfs(ctx, cache, piKernel, piChip, volumeUUID, say)
	if err != nil {
		return nil, err
	}
	out := &peer{bytes: len(m.initramfs), piBytes: len(onPi.initramfs), release: m.release, built: m.took + onPi.took}
	if out.dir, err = os.MkdirTemp(filepath.Dir(filepath.Dir(p.Card.Image)), ".bench-"); err != nil {
		return nil, err
	}
	out.card, out.chip = filepath.Join(out.dir, "card.img"), filepath.Join(out.dir, "tpm")
	files := map[string][]byte{
		// The very kernel of ours, with the same words but those of our own program.
		card.KernelFile: own[card.KernelFile], card.InitramfsFile: m.initramfs,
		card.CmdlineFile: []byte("root=/dev/mapper/root rootfstype=squashfs ro init_on_free=1 panic=10 net.ifnames=0 loglevel=4 console=ttyAMA0\n"),
	}
	if err := out.lay(ctx, files, p.Card.Image); err != nil {
		return nil, errors.Join(err, out.remove())
	}
	return out, nil
}

func (p *peer) remove() error { return os.RemoveAll(p.dir) }

// lay writes the card: settings of the firmware, boot files, encrypted root.
func (p *peer) lay(ctx context.Context, boot map[string][]byte, ours string) (err error) {
	from, err := os.Open(ours)
	if err != nil {
		return err
	}
	defer from.Close()
	root, err := pi.Partition(from, card.PartSeed)
	if err != nil {
		return err
	}
	f, err := os.Create(p.card)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sizes := []int64{card.ConfSize, card.BootSize, card.CryptHeader + root.Size()}
	table := &gpt.Table{DiskID: gpt.FromBytes([16]byte{1}), Sectors: uint64(sizes[0]+sizes[1]+sizes[2]+4*card.Align) / card.SectorSize}
	first := uint64(card.Align / card.SectorSize)
	for i, size := range sizes {
		table.Partitions = append(table.Partitions, gpt.Partition{Number: i + 1, Name: "PART" + strconv.Itoa(i+1),
			Type: gpt.MustGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4"), ID: gpt.FromBytes([16]byte{2, byte(i)}),
			First: first, Last: first + uint64(size/card.SectorSize) - 1})
		first += uint64((size + card.Align - 1) / card.Align * card.Align / card.SectorSize)
	}
	if err := f.Truncate(int64(table.Sectors * card.SectorSize)); err != nil {
		return err
	}
	if err := table.Write(f); err != nil {
		return err
	}
	for i, files := range []map[string][]byte{{card.AutobootFile: card.EncodeAutoboot(card.SlotA)}, boot} {
		part := table.Partitions[i]
		if err := fat.Build(io.NewOffsetWriter(f, part.Offset()), fat.Options{Size: part.Size()}, files); err != nil {
			return err
		}
	}
	pass, token, err := enrol(ctx, p.chip)
	if err != nil {
		return err
	}
	defer clear(pass)
	return encrypt(f, table.Partitions[2], root, pass, token)
}

// encrypt fills the volume with the root file system.
func encrypt(f *os.File, p gpt.Partition, root *io.SectionReader, pass []byte, token func(int) ([]byte, error)) error {
	d := &part{f, p.Offset()}
	key, err := format(d, p.Size(), volumeUUID, pass, token)
	if err != nil {
		return err
	}
	defer clear(key)
	h, _, err := luks2.Read(d, p.Size())
	if err != nil {
		return err
	}
	payload, err := h.Payload(d, key)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(payload, 0), root)
	return err
}

// part is a partition of the card.
type part struct {
	f      *os.File
	offset int64
}

func (p *part) ReadAt(b []byte, off int64) (int, error)  { return p.f.ReadAt(b, p.offset+off) }
func (p *part) WriteAt(b []byte, off int64) (int, error) { return p.f.WriteAt(b, p.offset+off) }
func (p *part) Sync() error                              { return p.f.Sync() }

// mountedAt is the line that the peer's last script writes to the kernel's log.
var mountedAt = regexp.MustCompile(`\[ *([0-9.]+)\] PIBOOT mounted`)

// boot returns the times from the start of the initramfs to the mounted root.
func (p *peer) boot(ctx context.Context) (times, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	run, err := os.MkdirTemp("", "piboot-")
	if err != nil {
		return times{}, err
	}
	defer os.RemoveAll(run)
	m, err := pi.Start(ctx, pi.Config{Name: "piboot-peer", Dir: run, Card: p.card, TPM: p.chip})
	if err != nil {
		return times{}, err
	}
	defer m.Kill()
	if _, err := m.Expect(ctx, "PIBOOT end"); err != nil {
		return times{}, err
	}
	log := m.Console().Text()
	mounted, err := seconds(mountedAt, log)
	if err != nil {
		return times{}, err
	}
	return since(log, mounted)
}
