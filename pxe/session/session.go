// Package session is the state machine of boot sessions: which boot the PC on
// the port is in, what it has fetched, and whether a claim to be that boot is
// believed. There is at most one live session, because there is one port and
// one PC. The transports ask it before they send; attestd asks it about claims.
package session

import (
	"crypto/ed25519"
	"encoding/base32"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"portcullis/images/manifest"
)

// State of a session.
type State string

// States, in their order: Offered → Fetching → Served → Claimed; Void and Ended
// can follow each of them and are final.
const (
	Offered  State = "offered"  // an answer to a boot request was allowed
	Fetching State = "fetching" // a byte of an artefact was sent
	Served   State = "served"   // every mandatory artefact is covered
	Claimed  State = "claimed"  // the agent of this boot holds the claim
	Void     State = "void"     // never claimable any more
	Ended    State = "ended"    // a newer boot took its place, or it was given up
)

// Firmware is the way in which the PC loads its first program.
type Firmware string

// Firmware ways; the names are those of the lab's flag and of the API.
const (
	UEFIHTTP Firmware = "uefi-http"
	UEFIPXE  Firmware = "uefi-pxe"
	IPXE     Firmware = "ipxe"
	BIOS     Firmware = "bios"
)

// Script is the generated iPXE script of a session.
const Script = "boot.ipxe"

// boot returns what the firmware loads before the kernel runs.
func (f Firmware) boot() []string {
	if f == BIOS {
		return []string{manifest.Kernel, manifest.Initrd}
	}
	return []string{manifest.UKI}
}

// Mandatory returns the artefacts without which this way cannot have booted.
func (f Firmware) Mandatory() []string { return append(f.boot(), manifest.Root) }

// Offers tells whether this way needs name at all. What it does not need is not served.
func (f Firmware) Offers(name string) bool {
	if name == Script {
		return f == IPXE || f == BIOS
	}
	return name == manifest.Envelope || slices.Contains(f.Mandatory(), name)
}

// Session is a copy of what is known about one boot.
type Session struct {
	ID        string
	MAC       string
	Address   netip.Addr
	Firmware  Firmware
	State     State
	Reason    string // why it is void or ended
	Opened    time.Time
	LastByte  time.Time // of any artefact; zero before the first
	BootByte  time.Time // of what the firmware loads: the kernel cannot be older
	ClaimedAt time.Time
	ClaimKey  ed25519.PublicKey
	Manifest  [32]byte // digest of the signed payload that it boots from
	Artefacts []Progress
	xid       uint32
}

// Progress tells how much of an artefact was sent.
type Progress struct {
	Name      string
	Size      int64
	Covered   int64
	Transport string
	started   time.Time
}

// Live tells whether artefacts may be served.
func (s *Session) Live() bool {
	return s.State == Offered || s.State == Fetching || s.State == Served
}

var idForm = regexp.MustCompile(`^[a-z2-7]{26}$`)

// ValidID tells whether s has the form of a session id: 26 characters, lower-case base32 of 128 bits.
func ValidID(s string) bool { return idForm.MatchString(s) }

var idEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

func newID(random io.Reader) (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", err
	}
	return strings.ToLower(idEncoding.EncodeToString(b)), nil
}
