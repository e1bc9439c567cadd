package protocol

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

func seed(m *Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func samples() [][]byte {
	id, d32, sig := make([]byte, 16), make([]byte, 32), make([]byte, 64)
	return [][]byte{
		seed(&Message{Body: &Message_Hello{Hello: &Hello{Version: 1, Nonce: d32}}}),
		seed(&Message{Body: &Message_Claim{Claim: &Claim{Session: "aaaaaaaaaaaaaaaaaaaaaaaaaa", ManifestDigest: d32, RootHash: d32, Nonce: d32, PublicKey: d32, Signature: sig}}}),
		seed(&Message{Body: &Message_Challenge{Challenge: &Challenge{Id: id, Session: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Sequence: 1, Nonce: d32, DeadlineMs: 1, Previous: d32, Ops: []*Op{{Name: "boot"}}}}}),
		seed(&Message{Body: &Message_Chunk{Chunk: &Chunk{Id: id, Size: 3, Data: []byte("abc")}}}),
		seed(&Message{Body: &Message_Evidence{Evidence: &Evidence{Id: id, Sequence: 1, Previous: d32, Signature: sig, Results: []*OpResult{{Name: "boot", Digest: d32}}}}}),
		seed(&Message{Body: &Message_Down{Down: &Down{Id: id, Session: "aaaaaaaaaaaaaaaaaaaaaaaaaa", Off: true, Signature: sig}}}),
		{}, {0}, {0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff, 1}, bytes.Repeat([]byte{0x0a}, 300),
	}
}

// FuzzDecodeFrame reads frames as either end does: no panic, no more memory
// than the cap, and what decodes encodes to something that decodes equal.
func FuzzDecodeFrame(f *testing.F) {
	for _, s := range samples() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewStream(bytes.NewBuffer(b))
		for {
			m, err := s.Receive(MaxFrame)
			if err != nil {
				return
			}
			var out bytes.Buffer
			if err := NewStream(&out).Send(m); err != nil {
				t.Fatalf("decoded but cannot be sent: %v", err)
			}
			again, err := NewStream(&out).Receive(MaxFrame)
			if err != nil || !proto.Equal(m, again) {
				t.Fatalf("differs after a round: %v", err)
			}
		}
	})
}

// FuzzCheck runs the checks and the transcripts behind them on anything that
// decodes: what passed a check must not break what trusts it.
func FuzzCheck(f *testing.F) {
	for _, s := range samples() {
		if len(s) > 4 {
			f.Add(s[4:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b)
		if err != nil {
			return
		}
		if h := m.GetHello(); h.Check() == nil {
			_ = [32]byte(h.Nonce)
		}
		if c := m.GetClaim(); c.Check() == nil {
			ClaimTranscript(c, make([]byte, 32), [32]byte{}, Binding{})
		}
		if c := m.GetChallenge(); c.Check() == nil {
			_, _ = [16]byte(c.Id), [32]byte(c.Nonce)
			ChallengeDigest(c)
		}
		if c := m.GetChunk(); c.Check() == nil && c.Offset+uint64(len(c.Data)) > c.Size {
			t.Fatal("a chunk beyond its size passed")
		}
		if d := m.GetDown(); d.Check() == nil {
			_ = [16]byte(d.Id)
			DownTranscript(Binding{}, d)
		}
		if e := m.GetEvidence(); e.Check() == nil {
			for _, r := range e.Results {
				_ = [32]byte(r.Digest)
			}
			EvidenceTranscript([32]byte{}, Binding{}, e, make([][]byte, len(e.Results)))
		}
	})
}

// FuzzMeasurement reads entries as the kernel writes them and as it never would. What
// comes out must pass through JSON unchanged: both ends compute a chain over it.
func FuzzMeasurement(f *testing.F) {
	digest := "\x28\x00\x00\x00sha256:\x00" + strings.Repeat("\xaa", 32)
	f.Add("ima-ng", []byte(digest+"\x07\x00\x00\x00/bin/a\x00"))
	f.Add("ima-sig", []byte(digest+"\x03\x00\x00\x00/\xff\x00\x00\x00\x00\x00"))
	f.Add("ima-sig", []byte(digest+"\xff\xff\xff\xff"))
	f.Add("ima-buf", []byte(digest))
	f.Fuzz(func(t *testing.T, template string, data []byte) {
		m, err := ParseMeasurement(template, data)
		if err != nil {
			if !errors.Is(err, ErrMeasurement) {
				t.Errorf("an error of no type: %v", err)
			}
			return
		}
		b, err := json.Marshal(m)
		var again Measurement
		if err != nil || json.Unmarshal(b, &again) != nil || !reflect.DeepEqual(again, m) || len(m.Digest) != 64 || len(m.Path) > MaxString {
			t.Errorf("%+v became %+v: %v", m, again, err)
		}
	})
}
