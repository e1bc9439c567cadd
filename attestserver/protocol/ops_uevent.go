package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Limits of what op uevent answers.
const (
	MaxUevents    = 1024 // records in one answer
	MaxUeventText = 512  // bytes of one record's strings together
)

// Uevent is one message of the kernel about a device (kobject_uevent(9)).
type Uevent struct {
	Action    string `json:"action"`    // add, remove, change, move, online, offline, bind or unbind
	Path      string `json:"path"`      // below /sys
	Subsystem string `json:"subsystem"` // usb, pci, block, net …
	Synthetic bool   `json:"synthetic"` // asked for by a program (udevadm trigger), nothing has happened
	At        int64  `json:"at_ms"`     // CLOCK_BOOTTIME when it was read
}

// UeventStart is the head of the chain before the first event.
var UeventStart = sha256.Sum256([]byte("portcullis-uevents-v1"))

// UeventNext is the chain's head after an event.
func UeventNext(head [32]byte, e Uevent) [32]byte {
	h := sha256.New()
	h.Write(head[:])
	for _, s := range []string{e.Action, e.Path, e.Subsystem, strconv.FormatBool(e.Synthetic), strconv.FormatInt(e.At, 10)} {
		writeField(h, []byte(s))
	}
	return Sum(h)
}

// UeventParams asks for the events after the first From.
type UeventParams struct {
	From uint64 `json:"from"`
}

// Check has nothing to refuse.
func (*UeventParams) Check() error { return nil }

// UeventData is the answer of op uevent.
type UeventData struct {
	First    uint64   `json:"first"`     // events before Events: From, or more where the agent has forgotten some
	HeadFrom string   `json:"head_from"` // hex, the chain's head after First events
	Events   []Uevent `json:"events"`
	Head     string   `json:"head"`  // hex, after the last of Events
	Total    uint64   `json:"total"` // events there have been in all
	Lost     uint64   `json:"lost"`  // times that the kernel dropped events because nobody read them fast enough
}

// Check bounds the lists and strings.
func (d *UeventData) Check() error {
	if err := atMost("uevents", len(d.Events), MaxUevents); err != nil {
		return err
	}
	for _, e := range d.Events {
		if n := len(e.Action) + len(e.Path) + len(e.Subsystem); n > MaxUeventText {
			return fmt.Errorf("uevent of %d bytes", n)
		}
	}
	if d.First+uint64(len(d.Events)) > d.Total || d.First > d.Total {
		return errors.New("more uevents than there have been")
	}
	for _, s := range []string{d.Head, d.HeadFrom} {
		if b, err := hex.DecodeString(s); err != nil || len(b) != 32 {
			return errors.New("a head that is no SHA-256")
		}
	}
	return nil
}

// hardwareSubsystems are those whose devices are parts of the machine. Left out
// is what drivers make by themselves beside them: queues, inputs, wake-up sources.
var hardwareSubsystems = map[string]bool{
	"usb": true, "pci": true, "block": true, "net": true, "nvme": true, "scsi": true, "thunderbolt": true, "mmc": true,
	"firewire": true, "virtio": true, "memory": true, "cpu": true, "ieee80211": true, "bluetooth": true, "pcmcia": true, "platform": true,
}

// Hardware tells whether a part of the machine has come or gone.
func (e Uevent) Hardware() bool {
	return !e.Synthetic && (e.Action == "add" || e.Action == "remove") && hardwareSubsystems[e.Subsystem] &&
		strings.HasPrefix(e.Path, "/devices/") && !strings.HasPrefix(e.Path, "/devices/virtual/")
}
