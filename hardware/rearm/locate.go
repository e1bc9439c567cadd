package rearm

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/rootfs/boot"
)

// Nodes are the device nodes of the card that the running system came from.
type Nodes struct {
	Crypt string // the encrypted partition
	Boot  string // the boot partition of the slot in use
}

// Locate finds the card below the open volume: by what the volume lies on, never by a
// label alone, which a second card in a reader carries as well.
func Locate(slot card.Slot) (Nodes, error) {
	node, err := boot.MappedPath(card.MapperCrypt)
	if err != nil {
		return Nodes{}, fmt.Errorf("the card's volume is not open here: %w", err)
	}
	below, err := os.ReadDir(filepath.Join(boot.SysBlock, filepath.Base(node), "slaves"))
	if err != nil {
		return Nodes{}, err
	}
	if len(below) != 1 {
		return Nodes{}, fmt.Errorf("%s lies on %d devices", node, len(below))
	}
	disks, err := boot.Disks(boot.SysBlock)
	if err != nil {
		return Nodes{}, err
	}
	for _, d := range disks {
		if filepath.Base(d.Partitions[card.PartCrypt]) == below[0].Name() {
			return Nodes{Crypt: d.Partitions[card.PartCrypt], Boot: d.Partitions[slot.BootPartition()]}, nil
		}
	}
	return Nodes{}, fmt.Errorf("%s is partition %d of no disk", below[0].Name(), card.PartCrypt)
}

// ReadPolicy reads policy.json of a boot partition. Whose it is the chip's backend checks.
func ReadPolicy(node string) (*tpmpolicy.File, error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	v, err := fat.Open(f, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	b, err := v.ReadFile(card.PolicyFile, tpmpolicy.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	return tpmpolicy.Parse(b)
}
