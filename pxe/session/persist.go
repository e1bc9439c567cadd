package session

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"portcullis/internal/event"
	"portcullis/pxe/artefact"
	"portcullis/pxe/ledger"
)

// snapshot is one record of the session journal: a session as it is from then
// on. How far its artefacts are covered stands in the served-ledger.
type snapshot struct {
	ID        string   `json:"session"`
	MAC       string   `json:"mac"`
	Address   string   `json:"address"`
	Firmware  Firmware `json:"firmware"`
	State     State    `json:"state"`
	Reason    string   `json:"reason,omitempty"`
	XID       uint32   `json:"xid"`
	OpenedMS  int64    `json:"opened"` // Unix milliseconds
	ClaimedMS int64    `json:"claimed,omitempty"`
	ClaimKey  []byte   `json:"claim_key,omitempty"`
	Manifest  string   `json:"manifest"`
}

// record writes the state of e. The caller holds mu.
func (m *Manager) record(e *entry) error {
	s := snapshot{
		ID: e.ID, MAC: e.MAC, Address: e.Address.String(), Firmware: e.Firmware, State: e.State, Reason: e.Reason,
		XID: e.xid, OpenedMS: e.Opened.UnixMilli(), ClaimKey: e.ClaimKey, Manifest: hex.EncodeToString(e.Manifest[:]),
	}
	if !e.ClaimedAt.IsZero() {
		s.ClaimedMS = e.ClaimedAt.UnixMilli()
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = m.cfg.Journal.Append(b)
	return err
}

// recordOrReport is for changes that take something away: they hold even when they cannot be written.
func (m *Manager) recordOrReport(e *entry) {
	if err := m.record(e); err != nil {
		m.cfg.Events.Emit("journal.failed", event.Fields{"session": e.ID, "detail": err.Error()})
	}
}

// History is what a journal and a ledger say about the time before a restart.
type History struct {
	newest *snapshot
	past   map[string]bool
	keys   map[string]bool
	sent   []ledger.Entry // of the newest session
}

// Session takes one record of the session journal. Call it for all of them
// before Served.
func (h *History) Session(payload []byte) error {
	var s snapshot
	if err := json.Unmarshal(payload, &s); err != nil {
		return fmt.Errorf("session record: %w", err)
	}
	switch {
	case !ValidID(s.ID):
		return fmt.Errorf("session record: %q is no session id", s.ID)
	case !slices.Contains([]State{Offered, Fetching, Served, Claimed, Void, Ended}, s.State):
		return fmt.Errorf("session record: state %q is not known", s.State)
	case !slices.Contains([]Firmware{UEFIHTTP, UEFIPXE, IPXE, BIOS}, s.Firmware):
		return fmt.Errorf("session record: firmware %q is not known", s.Firmware)
	}
	if h.past == nil {
		h.past, h.keys = map[string]bool{}, map[string]bool{}
	}
	if h.newest != nil && h.newest.ID != s.ID {
		h.past[h.newest.ID] = true
	}
	if len(s.ClaimKey) > 0 {
		h.keys[string(s.ClaimKey)] = true
	}
	h.newest = &s
	return nil
}

// Served takes one entry of the served-ledger.
func (h *History) Served(e ledger.Entry) {
	if h.newest == nil || e.Session != h.newest.ID || e.Transport == ledger.DHCP {
		return
	}
	h.sent = append(h.sent, e)
}

// Restore takes over what was before the restart. The newest session goes on
// under its id if the image is still the one that it boots from; image may be
// nil. A claimed session does not need it.
func (m *Manager) Restore(h *History, image *artefact.Image) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.newest == nil {
		return nil
	}
	e, err := h.newest.entry()
	if err != nil {
		return err
	}
	m.past, m.keys, m.current = h.past, h.keys, e
	if image != nil && e.Manifest == image.Manifest.Digest {
		e.image = image
		e.Artefacts = progress(BootRequest{Firmware: e.Firmware, Image: image})
		h.replay(e)
	}
	if e.Live() {
		if e.image == nil || e.MAC != m.cfg.MAC || e.Address != m.cfg.Address {
			m.end(e, EndImageGone)
			return nil
		}
		m.advance(e)
	}
	return nil
}

// replay covers what the ledger says was sent: of a response that ended, what
// the kernel took; of one that did not, its pieces.
func (h *History) replay(e *entry) {
	ended := map[uint64]bool{}
	for _, x := range h.sent {
		if x.Kind == ledger.KindResponse && x.Result != ledger.Interrupted {
			ended[x.ID] = true
		}
	}
	for _, x := range h.sent {
		switch {
		case x.Kind == ledger.KindPiece && !ended[x.ID]:
			e.cover(x.Artefact, x.Transport, x.Offset, x.Length, time.UnixMilli(x.BeginMS))
		case x.Kind == ledger.KindResponse && ended[x.ID]:
			e.cover(x.Artefact, x.Transport, x.Offset, x.Length, time.UnixMilli(x.EndMS))
		}
	}
}

func (s *snapshot) entry() (*entry, error) {
	address, err := netip.ParseAddr(s.Address)
	if err != nil {
		return nil, fmt.Errorf("session record: %w", err)
	}
	e := &entry{
		Session: Session{
			ID: s.ID, MAC: s.MAC, Address: address, Firmware: s.Firmware, State: s.State, Reason: s.Reason,
			Opened: time.UnixMilli(s.OpenedMS), ClaimKey: s.ClaimKey, xid: s.XID,
		},
		covers: map[string]*cover{},
	}
	if s.ClaimedMS != 0 {
		e.ClaimedAt = time.UnixMilli(s.ClaimedMS)
	}
	if n, err := hex.Decode(e.Manifest[:], []byte(s.Manifest)); err != nil || n != len(e.Manifest) {
		return nil, fmt.Errorf("session record: manifest digest %q", s.Manifest)
	}
	return e, nil
}
