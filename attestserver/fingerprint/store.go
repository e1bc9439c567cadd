package fingerprint

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"strings"
	"sync"

	"portcullis/attestserver/protocol"
	"portcullis/internal/decoded"
)

// Kinds of references. The key of each is the machine's MAC with dashes; of an
// approval also a dot and the generation that it made or confirmed.
const (
	KindRecord   = "fingerprint"
	KindPending  = "fingerprint-pending"
	KindSession  = "fingerprint-session"
	KindApproval = "fingerprint-approval"
)

// writing keeps an answer that is judged and an approval of the same machine from
// overtaking each other. Several machines share one of them.
var writing [64]sync.Mutex

func writingOf(mac string) *sync.Mutex {
	h := fnv.New32a()
	h.Write([]byte(mac))
	return &writing[h.Sum32()%uint32(len(writing))]
}

// What was read of late.
var (
	records  decoded.Memo[Record]
	sessions decoded.Memo[sessionParts]
)

// Key names the references of a machine.
func Key(mac string) string { return strings.ReplaceAll(mac, ":", "-") }

// Load returns the record of a machine; an error that is fs.ErrNotExist where
// none is enrolled.
func Load(refs protocol.References, mac string) (*Record, error) {
	b, err := refs.Get(KindRecord, Key(mac))
	if err != nil {
		return nil, err
	}
	r, err := records.Decode(b, decodeRecord)
	if err != nil {
		return nil, err
	}
	if r.Machine != mac {
		return nil, refuse(ReasonRecord, "it is of %.40q", r.Machine)
	}
	return r.clone(), nil
}

// LoadPending returns the drift that waits; nil where nothing does.
func LoadPending(refs protocol.References, mac string) (*Pending, error) {
	b, err := refs.Get(KindPending, Key(mac))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := decodePending(b)
	if err != nil || p.Record == nil {
		return nil, err
	}
	return p, nil
}

func save(refs protocol.References, r *Record) error {
	if err := r.seal(); err != nil {
		return err
	}
	return put(refs, KindRecord, Key(r.Machine), r)
}

func savePending(refs protocol.References, mac string, p *Pending) error {
	p.Schema = 1
	return put(refs, KindPending, Key(mac), p)
}

// sessionParts are the parts as the first answer of a boot session had them.
type sessionParts struct {
	Session string `json:"session"`
	Parts   []Part `json:"parts"` // without those that may come late
}

// firstOf returns the parts of the session's first answer; nil when this is it.
func firstOf(refs protocol.References, mac, session string) ([]Part, error) {
	b, err := refs.Get(KindSession, Key(mac))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := sessions.Decode(b, func(b []byte) (*sessionParts, error) {
		s := new(sessionParts)
		return s, strictUpTo(b, MaxRecord, s)
	})
	if err != nil {
		return nil, refuse(ReasonRecord, "the session's parts: %v", err)
	}
	if s.Session != session {
		return nil, nil
	}
	return s.Parts, nil // which nobody changes
}

func saveFirst(refs protocol.References, mac, session string, parts []Part) error {
	return put(refs, KindSession, Key(mac), sessionParts{session, early(parts)})
}

// early are the parts that are there from the kernel's start, and those that do
// not change once they are there.
func early(parts []Part) (out []Part) {
	for _, p := range parts {
		if !late[p.Class] || lasting[p.Class] {
			out = append(out, p)
		}
	}
	return out
}

func put(refs protocol.References, kind, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("fingerprint: %w", err)
	}
	return refs.Put(kind, key, b)
}
