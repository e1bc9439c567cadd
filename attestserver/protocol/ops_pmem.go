package protocol

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// PageSize is the page size of the PC, in bytes (x86-64).
const PageSize = 4096

// PmemParams asks for one page of every mapped executable segment and Extra
// pages more, all chosen by Seed.
type PmemParams struct {
	Seed  string `json:"seed"`  // 32 bytes, hex
	Extra int    `json:"extra"` // 0 to MaxPages
}

// Check bounds the numbers.
func (p *PmemParams) Check() error {
	if b, err := hex.DecodeString(p.Seed); err != nil || len(b) != 32 {
		return errors.New("seed is not 32 bytes in hex")
	}
	if p.Extra < 0 || p.Extra > MaxPages {
		return fmt.Errorf("extra is %d, allowed are 0 to %d", p.Extra, MaxPages)
	}
	return nil
}

// Page is one page of a process's executable memory.
type Page struct {
	Path    string  `json:"path"`
	Segment Segment `json:"segment"` // of the file
	Pick    int     `json:"pick"`    // 0: the segment's own page, 1 … its extra ones
	Offset  uint64  `json:"offset"`  // of the page in the file
	PID     int     `json:"pid"`     // whose memory was read
	MAC     string  `json:"mac"`     // PageMAC, hex
}

// Patch is a process whose executable mapping of a file holds pages that are no
// longer the file's.
type Patch struct {
	PID    int    `json:"pid"`
	Path   string `json:"path"`
	Offset uint64 `json:"offset"` // of the first such page in the file
	Pages  int    `json:"pages"`
}

// MaxPatches is how many are named; the first are enough.
const MaxPatches = 64

// PmemData is the answer of op pmem.
type PmemData struct {
	Pages    []Page  `json:"pages"`
	Patches  []Patch `json:"patches"`
	Vanished int     `json:"vanished"` // segments whose processes ended while they were read
}

// Check bounds the lists and strings.
func (d *PmemData) Check() error {
	if err := atMost("pages", len(d.Pages), MaxPages+MaxFiles); err != nil {
		return err
	}
	if err := atMost("patches", len(d.Patches), MaxPatches); err != nil {
		return err
	}
	for _, p := range d.Patches {
		if err := short("patch", p.Path); err != nil {
			return err
		}
	}
	for _, p := range d.Pages {
		if err := short("page", p.Path, p.MAC); err != nil {
			return err
		}
	}
	return nil
}

// PickPage chooses a page of a segment: both sides compute it, so that the
// agent cannot choose a page that suits it. The segment must hold a page.
func (m *MACs) PickPage(seed string, path string, s Segment, pick int) uint64 {
	h := m.begin("pmem-pick", []byte(seed))
	m.t.text(path)
	m.t = binary.BigEndian.AppendUint64(m.t, s.Offset)
	m.t = binary.BigEndian.AppendUint64(m.t, s.Length)
	m.t = binary.BigEndian.AppendUint64(m.t, uint64(pick))
	h.Write(m.t)
	pages := max(s.Length/PageSize, 1)
	return s.Offset + binary.BigEndian.Uint64(m.end())%pages*PageSize
}

// PageMAC is the keyed digest of one page: HMAC over what it is and its bytes.
func (m *MACs) PageMAC(path string, offset uint64, page []byte) string {
	h := m.begin("pmem-page", binary.BigEndian.AppendUint64(nil, offset))
	m.t.text(path)
	h.Write(m.t)
	h.Write(page)
	return hex.EncodeToString(m.end()[:16])
}
