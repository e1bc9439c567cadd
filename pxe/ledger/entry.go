package ledger

import (
	"encoding/json"
)

// Kinds of entries.
const (
	KindPiece    = "piece"    // bytes about to be handed to the kernel, written first
	KindResponse = "response" // a response that is over, or a packet about to be sent
)

// Transports.
const (
	DHCP = "dhcp"
	TFTP = "tftp"
	HTTP = "http"
)

// Results of a response. A cut response carries the reason behind a colon.
const (
	Complete    = "complete"
	Head        = "head"        // headers only
	Probe       = "probe"       // TFTP: the client asked for the size and went away
	Cut         = "cut"         // ended early
	Interrupted = "interrupted" // the server died meanwhile; written at its next start
)

// Entry is one record of the ledger.
type Entry struct {
	Kind      string `json:"kind"`
	ID        uint64 `json:"id"`        // of the response; its pieces carry the same
	Session   string `json:"session"`   // empty where none is open
	Artefact  string `json:"artefact"`  // or what the packet is: offer, ack, …
	Manifest  string `json:"manifest"`  // hex SHA-256 of the signed payload
	Transport string `json:"transport"` // dhcp, tftp or http
	Client    string `json:"client"`    // ip:port
	Offset    int64  `json:"offset"`    // bytes
	// Length is the number of bytes: of a piece those that may be sent, of a
	// response those that the kernel took, or over TFTP that were acknowledged.
	// Of an interrupted response it is the sum of its pieces, an upper bound.
	Length int64 `json:"length"`
	// SHA256 is of those bytes, in hex. An interrupted response has none; its pieces do.
	SHA256  string `json:"sha256,omitempty"`
	Result  string `json:"result,omitempty"` // of a response
	BeginMS int64  `json:"t0"`               // Unix milliseconds
	EndMS   int64  `json:"t1,omitempty"`     // of a response
}

// EntryError is a record of the chain that is no entry of a ledger.
type EntryError struct{ Detail string }

func (e *EntryError) Error() string { return "ledger entry: " + e.Detail }

func decode(payload []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(payload, &e); err != nil {
		return e, &EntryError{err.Error()}
	}
	switch {
	case e.Kind != KindPiece && e.Kind != KindResponse:
		return e, &EntryError{"of no known kind"}
	case e.Offset < 0 || e.Length < 0 || e.Offset+e.Length < 0:
		return e, &EntryError{"with an impossible range"}
	}
	return e, nil
}
