package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Block reads blocks that the gateway chose from the device below the verity
// root, past the page cache where the device allows it, and tells the live
// device-mapper table on top of it.
//
// It finds a root image that was changed or replaced behind dm-verity, a verity
// device whose table was exchanged, and corruption that the kernel has met.
//
// It samples: one changed block of many is found only in time (see
// docs/threat-model.md for the odds). It cannot see a device that lies.
type Block struct{ Host }

// Name implements protocol.Probe.
func (*Block) Name() string { return protocol.OpBlock }

// Run implements protocol.Probe.
func (p *Block) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.BlockParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	verity, below, err := p.root()
	if err != nil {
		return protocol.Output{}, err
	}
	f, direct, err := openDirect(filepath.Join(p.Dev, below))
	if err != nil {
		return protocol.Output{}, err
	}
	defer f.Close()
	buf, err := alignedBlock()
	if err != nil {
		return protocol.Output{}, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	h := key.NewDigest(p.Name(), params)
	for _, b := range want.Blocks {
		if err := alive(ctx); err != nil {
			return protocol.Output{}, err
		}
		if b > 1<<40 {
			return protocol.Output{}, fmt.Errorf("block %d", b)
		}
		if _, err := f.ReadAt(buf, int64(b)*protocol.BlockSize); err != nil {
			return protocol.Output{}, fmt.Errorf("block %d of %s: %w", b, below, err)
		}
		h.Write(buf)
	}
	d := protocol.BlockData{Device: below, Direct: direct, Verity: verity}
	data, err := protocol.EncodeOp(d)
	if err != nil {
		return protocol.Output{}, err
	}
	h.Write(data)
	return protocol.Output{Digest: protocol.Sum(h), Data: data}, nil
}

// root reads the first device of device-mapper, the one that hpc-init made for the
// root, and the device below it. Another one behind it is not looked for: who
// exchanges the table of the root could leave a decoy with the right one there.
func (p *Block) root() (v protocol.Verity, below string, err error) {
	devices, err := filepath.Glob(filepath.Join(p.Sys, "block/dm-*"))
	if err != nil {
		return v, "", err
	}
	if len(devices) == 0 {
		return v, "", errors.New("no device-mapper device of target verity")
	}
	slices.Sort(devices)
	first := devices[0]
	name := filepath.Base(first)
	if v, err = p.Verity(name); err != nil {
		return v, "", fmt.Errorf("table of %s: %w", name, err)
	}
	if v.Target != "verity" {
		return v, "", fmt.Errorf("%s, the first device of device-mapper, is of target %.16q instead of verity", name, v.Target)
	}
	slaves, err := os.ReadDir(filepath.Join(first, "slaves"))
	if err != nil {
		return v, "", err
	}
	if len(slaves) != 1 {
		return v, "", fmt.Errorf("%s lies on %d devices, want 1", name, len(slaves))
	}
	below = slaves[0].Name()
	v.Below = optional(p.Sys, "block", below, "dev")
	return v, below, nil
}

// openDirect opens a device past the page cache, or through it where the
// device refuses.
func openDirect(path string) (f *os.File, direct bool, err error) {
	f, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err == nil {
		return f, true, nil
	}
	if !errors.Is(err, unix.EINVAL) {
		return nil, false, err
	}
	f, err = os.Open(path)
	return f, false, err
}

// alignedBlock is one block of page-aligned memory, as O_DIRECT wants it.
func alignedBlock() ([]byte, error) {
	b, err := unix.Mmap(-1, 0, protocol.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("aligned buffer: %w", err)
	}
	return b, nil
}

// parseVerityTable reads the parameters of a verity target as the kernel shows
// them: version, data and hash device, block sizes, data blocks, first hash
// block, algorithm, root hash, salt (Documentation/admin-guide/device-mapper/verity.rst).
func parseVerityTable(s string, v *protocol.Verity) error {
	f := strings.Fields(s)
	if len(f) < 10 {
		return fmt.Errorf("verity table of %d words", len(f))
	}
	if f[0] != "1" || f[3] != "4096" || f[4] != "4096" {
		return fmt.Errorf("verity table of version %.16s with blocks of %.16s and %.16s bytes", f[0], f[3], f[4])
	}
	if _, err := fmt.Sscan(f[5], &v.DataBlocks); err != nil {
		return fmt.Errorf("verity table: data blocks: %w", err)
	}
	if _, err := fmt.Sscan(f[6], &v.HashStart); err != nil {
		return fmt.Errorf("verity table: hash start: %w", err)
	}
	v.DataDev, v.HashDev, v.Algorithm, v.RootHash, v.Salt = f[1], f[2], f[7], f[8], f[9]
	v.Options = strings.Join(f[10:], " ")
	return nil
}
