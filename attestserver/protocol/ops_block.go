package protocol

import "errors"

// BlockSize is the size in bytes of the blocks that op block reads: dm-verity's.
const BlockSize = 4096

// MaxBlocks bounds the blocks of one challenge.
const MaxBlocks = 2048

// BlockParams asks for blocks of the root image, counted from its start; the
// verity tree is part of it.
type BlockParams struct {
	Blocks []uint64 `json:"blocks"`
}

// Check bounds the list.
func (p *BlockParams) Check() error {
	if len(p.Blocks) == 0 {
		return errors.New("no blocks are asked for")
	}
	return atMost("blocks", len(p.Blocks), MaxBlocks)
}

// BlockData says where the blocks came from and what opens the root device.
// The blocks themselves are in the keyed digest only.
type BlockData struct {
	Device string `json:"device"` // read from, for instance loop0
	Direct bool   `json:"direct"` // past the page cache
	Verity Verity `json:"verity"` // the table of the dm device on top
}

// Verity is a device-mapper table of target verity, and its state.
type Verity struct {
	Device     string `json:"device"`  // dm-0
	Targets    int    `json:"targets"` // in the live table; 1
	Target     string `json:"target"`  // verity
	Status     string `json:"status"`  // V: no corruption was met, C: it was
	ReadOnly   bool   `json:"read_only"`
	DataDev    string `json:"data_dev"` // major:minor
	HashDev    string `json:"hash_dev"`
	DataBlocks uint64 `json:"data_blocks"`
	HashStart  uint64 `json:"hash_start"`
	Algorithm  string `json:"algorithm"`
	RootHash   string `json:"root_hash"`
	Salt       string `json:"salt"`
	Options    string `json:"options,omitempty"` // of the table, behind the salt; hpc-init gives none
	Below      string `json:"below"`             // major:minor of Device in BlockData
}

// Check bounds the strings.
func (d *BlockData) Check() error {
	v := &d.Verity
	return short("block", d.Device, v.Device, v.Target, v.Status, v.DataDev, v.HashDev, v.Algorithm, v.RootHash, v.Salt, v.Options, v.Below)
}
