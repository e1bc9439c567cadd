// Package manifest describes one PC image: its artefacts with size, digest and
// chunk digests, the verity root, the command line, the predicted PCRs and the
// time in which it is valid; signed as a DSSE envelope by m of n Ed25519 keys.
//
// A Manifest that came out of Open has been verified and validated; code that
// serves, boots or judges takes only such a value.
package manifest

import "time"

// Schema is the only schema this package reads and writes.
const Schema = "portcullis/manifest/v1"

// PayloadType is the DSSE payload type.
const PayloadType = "application/vnd.portcullis.manifest.v1+json"

// Names of the artefacts and of the envelope beside them, in the image
// directory, in URLs and in TFTP names alike.
const (
	UKI      = "hpc.efi"
	Kernel   = "vmlinuz"
	Initrd   = "initrd"
	Root     = "root.img"
	Envelope = "manifest.dsse"
)

// ChunkSize is the size in bytes of every chunk but an artefact's last.
const ChunkSize = 1 << 20

// Profiles of an image.
const (
	ProfileLab     = "lab"     // cloud kernel, QEMU devices
	ProfileGeneric = "generic" // real PCs
)

// Artefact is one file of the image.
type Artefact struct {
	Name   string   `json:"name"`
	Size   int64    `json:"size"`   // bytes
	SHA256 string   `json:"sha256"` // hex
	Chunks []string `json:"chunks"` // hex SHA-256 of each ChunkSize piece
}

// Verity is the dm-verity (format 1, SHA-256, 4096-byte blocks) of the root
// image: data blocks first, the hash tree behind them in the same file.
type Verity struct {
	RootHash   string `json:"root_hash"`   // hex
	Salt       string `json:"salt"`        // hex
	DataBlocks uint64 `json:"data_blocks"` // of 4096 bytes
	HashStart  uint64 `json:"hash_start"`  // first block of the tree, in 4096-byte blocks
}

// Section is one PE section of the UKI, as measured into PCR 11.
type Section struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// UKIInfo describes the unified kernel image.
type UKIInfo struct {
	StubVersion       string    `json:"stub_version"`
	KernelVersion     string    `json:"kernel_version"` // uname -r
	Sections          []Section `json:"sections"`
	Authenticode      string    `json:"authenticode_sha256"`       // of the UKI
	LinuxAuthenticode string    `json:"linux_authenticode_sha256"` // of its .linux section
}

// KernelTextMask counts the bytes of kernel text that the stock kernel patches
// itself at run time and that are therefore left out of the ktext comparison.
type KernelTextMask struct {
	Sites  int    `json:"sites"`
	Bytes  int    `json:"bytes"`
	Total  int64  `json:"total"`  // bytes of kernel text
	SHA256 string `json:"sha256"` // of the mask file in the root image
}

// Manifest is the signed description of one image.
type Manifest struct {
	Schema     string            `json:"schema"`
	Image      string            `json:"image"`
	Profile    string            `json:"profile"`
	LabChannel bool              `json:"lab_channel"` // the image has a root command channel: lab only
	Version    uint64            `json:"version"`     // monotonic; older ones are refused
	NotBefore  time.Time         `json:"not_before"`
	NotAfter   time.Time         `json:"not_after"`
	Artefacts  []Artefact        `json:"artefacts"`
	Verity     Verity            `json:"verity"`
	Cmdline    string            `json:"cmdline"`
	UKI        UKIInfo           `json:"uki"`
	PCR        map[string]string `json:"pcr"` // "9", "11", "12" → hex SHA-256 bank value
	Agent      string            `json:"agent_sha256"`
	Mask       KernelTextMask    `json:"kernel_text_mask"`
	Packages   []string          `json:"packages"` // name=version of every Debian package in it
}
