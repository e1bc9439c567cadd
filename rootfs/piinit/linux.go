package piinit

import (
	"context"
	"os"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/systemdtoken"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
	"portcullis/images/gpt"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// labels of the card's partitions and their numbers.
var labels = map[string]int{
	card.LabelConf: card.PartConf, card.LabelBootA: card.PartBootA, card.LabelBootB: card.PartBootB,
	card.LabelSeed: card.PartSeed, card.LabelCrypt: card.PartCrypt,
}

// linux is the Host of a real machine.
type linux struct {
	tpmPath string
	drivers func() // waits until those of the hardware are loaded
	modules func() // waits until all are, those of the open volume too
	waited  bool   // for the chip
	tpm     *tpm2.TPM
	// zymbitWait is zymbitWait, or 0 where no network card comes before the system does.
	zymbitWait time.Duration
	card       *linuxCard
}

func newLinux(info *card.Info, drivers, modules func()) *linux {
	l := &linux{tpmPath: tpm2.DefaultPath, drivers: drivers, modules: modules, zymbitWait: zymbitWait}
	if info.Model == card.ModelQEMU {
		l.zymbitWait = 0 // the driver is in the system, not here; and no module is bound to it
	}
	return l
}

// Card waits for the card and for its partitions.
func (l *linux) Card(ctx context.Context) (Card, error) {
	found, err := boot.FindCard(ctx, boot.SysBlock, labels)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(found.Path, os.O_RDWR, 0)
	if err != nil {
		return nil, boot.Failf(boot.ReasonBlock, "%w", err)
	}
	c := &linuxCard{file: f, disk: found.Disk, parts: map[int]*blockFile{}}
	l.card = c
	if found.Health.PrimaryFault != "" {
		if err := l.Settled(ctx); err != nil {
			return nil, err
		}
		// The kernel shows no partitions where only the backup is whole.
		if err := c.WriteTable(ctx, found.Table); err != nil {
			return nil, err
		}
	}
	if err := c.waitPartitions(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Settled looks for the card again once all drivers of hardware are loaded.
func (l *linux) Settled(ctx context.Context) error {
	l.drivers()
	again, err := boot.FindCard(ctx, boot.SysBlock, labels)
	if err == nil && again.Name != l.card.disk.Name {
		err = boot.Failf(boot.ReasonCardMissing, "%s has gone, %s has come", l.card.disk.Name, again.Name)
	}
	return err
}

// linuxCard is a block device with its partitions, each opened once.
type linuxCard struct {
	file  *os.File
	disk  boot.Disk
	parts map[int]*blockFile
}

func (c *linuxCard) waitPartitions(ctx context.Context) error {
	numbers := make([]int, 0, len(labels))
	for _, n := range labels {
		numbers = append(numbers, n)
	}
	return c.disk.WaitPartitions(ctx, boot.SysBlock, numbers...)
}

func (c *linuxCard) Size() int64 { return int64(c.disk.Sectors) * card.SectorSize }

func (c *linuxCard) Table() (*gpt.Table, gpt.Health, error) { return gpt.Read(c.file, c.disk.Sectors) }

// WriteTable writes the table; where the kernel knows the partitions only their size
// can have changed, otherwise it reads them anew.
func (c *linuxCard) WriteTable(ctx context.Context, t *gpt.Table) error {
	if err := t.Write(c.file); err != nil {
		return err
	}
	if len(c.disk.Partitions) == 0 {
		if err := boot.RereadPartitions(c.file); err != nil {
			return err
		}
		return c.waitPartitions(ctx)
	}
	p, err := t.ByName(card.LabelCrypt)
	if err != nil {
		return err
	}
	if err := boot.ResizePartition(c.file, p.Number, p.Offset(), p.Size()); err != nil {
		return err
	}
	if open := c.parts[p.Number]; open != nil {
		open.size = p.Size()
	}
	return nil
}

// Partition opens a partition by its number, once: two descriptors would do, but
// one is easier to reason about.
func (c *linuxCard) Partition(n int) (Disk, error) {
	if p := c.parts[n]; p != nil {
		return p, nil
	}
	p, err := openBlock(c.disk.Partitions[n], false)
	if err != nil {
		return nil, err
	}
	c.parts[n] = p
	return p, nil
}

// blockFile is an open block device.
type blockFile struct {
	*os.File
	size int64
}

func openBlock(path string, readOnly bool) (*blockFile, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, boot.Failf(boot.ReasonBlock, "%w", err)
	}
	size, err := boot.BlockBytes(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &blockFile{f, size}, nil
}

func (b *blockFile) Size() int64 { return b.size }

// tpmWait is how long the chip's device may take to appear: drivers of the bus below
// it may still be starting.
const tpmWait = 5 * time.Second

// TPM opens the chip, and waits for it the first time.
func (l *linux) TPM(ctx context.Context, config tpm2.Config) (TPM, error) {
	l.drivers()
	deadline := time.Now().Add(tpmWait)
	for {
		t, err := tpm2.Open(l.tpmPath, config)
		if err == nil {
			l.tpm = t
			return t, nil
		}
		if l.waited || hardware.ReasonOf(err) != hardware.ReasonAbsent || time.Now().After(deadline) {
			l.waited = true
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Map makes the dm-crypt device and, on it, the linear devices of its inside.
func (l *linux) Map(h *luks2.Header, key []byte) (Space, error) {
	l.modules()
	crypt, err := boot.OpenCrypt(card.MapperCrypt, l.card.disk.Partitions[card.PartCrypt], boot.Crypt{
		UUID: h.UUID(), Offset: h.PayloadOffset(), Size: h.PayloadSize(), SectorSize: h.SectorSize()}, key)
	if err != nil {
		return nil, err
	}
	all, err := openBlock(crypt, true)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	if all.size < 2*card.SystemSize+card.MinData {
		return nil, boot.Failf(ReasonCardSmall, "the volume has %d MiB", all.size>>20)
	}
	s := &linuxSpace{}
	for _, part := range []struct {
		name        string
		to          **blockFile
		start, size int64
	}{
		{card.MapperSystemA, &s.a, 0, card.SystemSize},
		{card.MapperSystemB, &s.b, card.SystemSize, card.SystemSize},
		{card.MapperData, &s.data, 2 * card.SystemSize, all.size - 2*card.SystemSize},
	} {
		path, err := boot.OpenLinear(part.name, crypt, uint64(part.start/card.SectorSize), uint64(part.size/card.SectorSize))
		if err != nil {
			return nil, err
		}
		if *part.to, err = openBlock(path, false); err != nil {
			return nil, err
		}
		if err := linkMapper(part.name, path); err != nil {
			return nil, err
		}
	}
	return s, linkMapper(card.MapperCrypt, crypt)
}

// linkMapper makes /dev/mapper/NAME, which only udev would make otherwise: the
// updater finds its slot by it.
func linkMapper(name, path string) error {
	link := "/dev/mapper/" + name
	os.Remove(link) // of an earlier try in this boot
	if err := os.Symlink(path, link); err != nil {
		return boot.Failf(boot.ReasonMapper, "%w", err)
	}
	return nil
}

// stubSignatures is where systemd-stub puts what systemd-measure signed.
const stubSignatures = "/.extra/tpm2-pcr-signature.json"

// SystemdToken asks the chip for a token of systemd-cryptenroll: plain registers or
// a signed policy. One with a PIN is left to the recovery key.
func (l *linux) SystemdToken(ctx context.Context, token []byte) ([]byte, error) {
	if l.tpm == nil {
		return nil, boot.Failf(ReasonNoChip, "no chip for a systemd-tpm2 token")
	}
	t, err := systemdtoken.Parse(token)
	if err != nil {
		return nil, err
	}
	var o systemdtoken.Options
	if text, err := os.ReadFile(stubSignatures); err == nil {
		if o.Signatures, err = systemdtoken.ParseSignatures(text); err != nil {
			return nil, boot.Failf(ReasonPolicyFile, "%w", err)
		}
	}
	return systemdtoken.Unseal(ctx, l.tpm, t, o)
}
