package challenge

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis/attestserver/protocol"
)

const session = "aaaaaaaaaaaaaaaaaaaaaaaaaa"

// stub is an Expectation with random parameters; big ones send chunks.
type stub string

func (s stub) Name() string { return string(s) }
func (s stub) Params(r io.Reader, _ *protocol.ImageState) ([]byte, error) {
	b := make([]byte, 16)
	_, err := io.ReadFull(r, b)
	return b, err
}
func (s stub) Judge(protocol.JudgeInput) []protocol.Finding { return nil }

type enroller struct{ stub }

func (enroller) Enrolled(*protocol.ImageState, protocol.References) (bool, error) { return false, nil }
func (enroller) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error)      { return nil, nil }
func (enroller) Enrol(protocol.JudgeInput) []protocol.Finding                     { return nil }

func all() []protocol.Expectation {
	return []protocol.Expectation{stub("hw"), stub("boot"), stub("block"), stub("procs"), stub("pmem"), stub("modules"), stub("net"), enroller{stub("ktext")}}
}

func want() Want {
	return Want{State: &protocol.ImageState{}, Expectations: all(), Deadline: time.Second, Random: rand.Reader}
}

func peer(t testing.TB) (Peer, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Peer{Session: session, Key: public, Binding: protocol.Binding{7}}, private
}

func compose(t testing.TB, c *Chooser, w Want, p Peer) *Sent {
	t.Helper()
	s, err := c.Compose(w, p, 1, [32]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(s *Sent) []string {
	var n []string
	for _, op := range s.Ops {
		n = append(n, op.Name())
	}
	return n
}

func TestFreshnessNoTwoChallengesAreAlike(t *testing.T) {
	p, _ := peer(t)
	seen := make(map[string]bool)
	orders := make(map[string]bool)
	var c Chooser
	for range 2000 {
		s := compose(t, &c, want(), p)
		m := s.Message
		for _, k := range []string{string(m.Id), string(m.Nonce)} {
			if seen[k] {
				t.Fatal("an id or nonce came twice")
			}
			seen[k] = true
		}
		for i, op := range s.Ops {
			for _, k := range []string{string(op.Key[:]), string(op.Params)} {
				if seen[k] {
					t.Fatalf("op %d: a key or parameters came twice", i)
				}
				seen[k] = true
			}
		}
		orders[strings.Join(names(s), " ")] = true
	}
	// 8! orders times the subsets: hardly any comes twice.
	if len(orders) < 1800 {
		t.Errorf("%d different programs in 2000 challenges", len(orders))
	}
}

func TestEveryChallengeHoldsACoreOpAndNoOpIsMissingTwice(t *testing.T) {
	p, _ := peer(t)
	var c Chooser
	count := make(map[string]int)
	var before []string
	const rounds = 4000
	for i := range rounds {
		s := compose(t, &c, want(), p)
		n := names(s)
		if !slices.Contains(n, "ktext") && !slices.Contains(n, "procs") && !slices.Contains(n, "boot") {
			t.Fatalf("no core op in %v", n)
		}
		for _, e := range all() {
			if slices.Contains(n, e.Name()) {
				count[e.Name()]++
			} else if i > 0 && !slices.Contains(before, e.Name()) {
				t.Fatalf("%s is missing twice", e.Name())
			}
		}
		before = n
		if s.Full != (len(n) == len(all())) {
			t.Fatalf("full: %v with %v", s.Full, n)
		}
	}
	// Left out with chance 1/4 unless left out before: a share of 1/5 of the time.
	for _, e := range all() {
		share := 1 - float64(count[e.Name()])/rounds
		if math.Abs(share-0.2) > 0.04 {
			t.Errorf("%s is left out in %.3f of the challenges", e.Name(), share)
		}
	}
}

func TestFullMustAndEnrol(t *testing.T) {
	p, _ := peer(t)
	for range 200 {
		w := want()
		w.Full = true
		if s := compose(t, new(Chooser), w, p); !s.Full || len(s.Ops) != len(all()) {
			t.Fatalf("full challenge of %v", names(s))
		}
		w = want()
		w.Must = []string{"net", "hw"}
		if n := names(compose(t, new(Chooser), w, p)); !slices.Contains(n, "net") || !slices.Contains(n, "hw") {
			t.Fatalf("must is missing in %v", n)
		}
		w = want()
		w.Enrol = []string{"ktext"}
		s := compose(t, new(Chooser), w, p)
		if n := names(s); !slices.Equal(n, []string{"ktext"}) || !s.Enrol || s.Full || !s.Message.Ops[0].Enrol {
			t.Fatalf("enrolment of %v", n)
		}
		w.Full = true
		s = compose(t, new(Chooser), w, p)
		if len(s.Ops) != len(all()) || s.Full || !s.Enrol {
			t.Fatalf("everything and an enrolment: %v", names(s))
		}
		for i, op := range s.Message.Ops {
			if op.Enrol != (op.Name == "ktext") || op.Enrol != s.Ops[i].Enrol {
				t.Fatalf("%s: enrol %v", op.Name, op.Enrol)
			}
		}
	}
	w := want()
	w.Enrol = []string{"boot"}
	if _, err := new(Chooser).Compose(w, p, 1, [32]byte{}); err == nil {
		t.Error("an op without reference is enrolled")
	}
}

func TestBrokenRandomSourceAsksNothing(t *testing.T) {
	p, _ := peer(t)
	broken := errors.New("no entropy")
	// 7 × 4 bytes of order, 8 of choice, 48 of id and nonce, 8 × 16 of parameters.
	for n := range 28 + 8 + 48 + 128 {
		w := want()
		w.Full = true
		w.Random = io.MultiReader(io.LimitReader(rand.Reader, int64(n)), iotest.ErrReader(broken))
		if s, err := new(Chooser).Compose(w, p, 1, [32]byte{}); !errors.Is(err, broken) {
			t.Fatalf("after %d bytes: %d ops, %v", n, len(s.Ops), err)
		}
	}
}

// answer is what an honest agent sends, with data for each op.
func answer(s *Sent, key ed25519.PrivateKey, data ...[]byte) *protocol.Evidence {
	e := &protocol.Evidence{Id: s.Message.Id, Sequence: s.Message.Sequence, Previous: s.Message.Previous, StartedMs: 1, FinishedMs: 2}
	all := make([][]byte, len(s.Ops))
	for i, op := range s.Ops {
		r := &protocol.OpResult{Name: op.Name(), Digest: make([]byte, 32), StartedUs: 5, FinishedUs: 10}
		if i < len(data) {
			all[i], r.DataSize = data[i], uint64(len(data[i]))
			if len(data[i]) <= protocol.InlineData {
				r.Data = data[i]
			}
		}
		e.Results = append(e.Results, r)
	}
	e.Signature = ed25519.Sign(key, protocol.EvidenceTranscript(protocol.ChallengeDigest(s.Message), s.peer.Binding, e, all))
	return e
}

func TestCheckAcceptsTheAnswerAndContinuesTheChain(t *testing.T) {
	p, key := peer(t)
	var c Chooser
	s := compose(t, &c, want(), p)
	e := answer(s, key, []byte("facts"))
	a, err := s.Check(e, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Answers) != len(s.Ops) || string(a.Answers[0].Output.Data) != "facts" || a.Answers[0].Elapsed != 5*time.Microsecond {
		t.Errorf("answers %+v", a.Answers)
	}
	s2 := compose(t, &c, want(), p)
	b, err := s2.Check(answer(s2, key), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if a.Head == b.Head {
		t.Error("different evidence, same chain head")
	}
}

func TestChunksArriveInOrderAndWhole(t *testing.T) {
	p, key := peer(t)
	w := want()
	w.Enrol = []string{"ktext"}
	big := make([]byte, 3*protocol.ChunkSize+17)
	rand.Read(big)
	s := compose(t, new(Chooser), w, p)
	e := answer(s, key, big)
	feed := func(s *Sent, upTo int) error {
		for off := 0; off < upTo; off += protocol.ChunkSize {
			end := min(off+protocol.ChunkSize, upTo)
			if err := s.Chunk(&protocol.Chunk{Id: s.Message.Id, Offset: uint64(off), Size: uint64(len(big)), Data: big[off:end]}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := feed(s, len(big)); err != nil {
		t.Fatal(err)
	}
	a, err := s.Check(e, time.Second)
	if err != nil || !slices.Equal(a.Answers[0].Output.Data, big) {
		t.Fatalf("whole: %v", err)
	}
	s = compose(t, new(Chooser), w, p)
	e = answer(s, key, big)
	if err := feed(s, 2*protocol.ChunkSize); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Check(e, time.Second); reason(err) != protocol.EvidenceMalformed {
		t.Errorf("cut data: %v", err)
	}
	for name, c := range map[string]*protocol.Chunk{
		"other challenge": {Id: make([]byte, 16), Size: 1, Data: []byte{1}},
		"other op":        {Id: s.Message.Id, Index: 5, Size: 1, Data: []byte{1}},
		"repeated":        {Id: s.Message.Id, Size: uint64(len(big)), Data: []byte{1}},
		"other size":      {Id: s.Message.Id, Offset: 2 * protocol.ChunkSize, Size: uint64(len(big)) + 1, Data: []byte{1}},
		"beyond the cap":  {Id: s.Message.Id, Size: protocol.MaxEnrolData + 1, Data: []byte{1}},
		"no data":         {Id: s.Message.Id, Size: 1},
		"nothing":         {},
	} {
		if err := s.Chunk(c); reason(err) != protocol.EvidenceMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What one PC can make attestd hold is bounded, however many ops its answer has.
func TestAttack_LargeAnswers(t *testing.T) {
	p, _ := peer(t)
	w := want()
	w.Full, w.Enrol = true, []string{"ktext"}
	s := compose(t, new(Chooser), w, p)
	held := 0
	for i := range s.Ops {
		size := protocol.MaxData
		if s.Ops[i].Enrol {
			size = protocol.MaxEnrolData
		}
		if reason(s.Chunk(&protocol.Chunk{Id: s.Message.Id, Index: uint32(i), Size: uint64(size), Data: []byte{1}})) == "" {
			held += size
		}
	}
	if held > protocol.MaxAnswerData || held < protocol.MaxAnswerData-protocol.MaxEnrolData {
		t.Errorf("%d bytes are held of %d ops", held, len(s.Ops))
	}
}

func reason(err error) string {
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Reason
	}
	return ""
}

// One changed bit anywhere in a signed answer refuses it.
func TestInvariant06_OneBitChangedIsRefused(t *testing.T) {
	p, key := peer(t)
	s := compose(t, new(Chooser), want(), p)
	wire, err := proto.Marshal(answer(s, key, []byte("facts")))
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for bit := range len(wire) * 8 {
		b := slices.Clone(wire)
		b[bit/8] ^= 1 << (bit % 8)
		e := new(protocol.Evidence)
		if proto.Unmarshal(b, e) != nil {
			continue
		}
		if _, err := s.Check(e, time.Hour); err == nil {
			accepted++
			t.Errorf("bit %d of %d does not matter", bit, len(wire)*8)
		}
	}
	if _, err := s.Check(answer(s, key, []byte("facts")), time.Second); err != nil {
		t.Fatalf("the unchanged answer: %v", err)
	}
}

// The same answer is worth nothing for a challenge that differs in one bit.
func TestInvariant06_AnswerFitsOneChallengeOnly(t *testing.T) {
	p, key := peer(t)
	s := compose(t, new(Chooser), want(), p)
	e := answer(s, key)
	for name, change := range map[string]func(*Sent){
		"nonce":    func(s *Sent) { s.Message.Nonce[31] ^= 1 },
		"params":   func(s *Sent) { s.Message.Ops[0].Params[0] ^= 1 },
		"deadline": func(s *Sent) { s.Message.DeadlineMs++ },
		"session":  func(s *Sent) { s.Message.Session = "b" + session[1:] },
		"binding":  func(s *Sent) { s.peer.Binding[63] ^= 1 },
		"key":      func(s *Sent) { s.peer.Key = slices.Clone(s.peer.Key); s.peer.Key[0] ^= 1 },
	} {
		other := *s
		other.Message = proto.Clone(s.Message).(*protocol.Challenge)
		change(&other)
		other.digest = protocol.ChallengeDigest(other.Message)
		if _, err := other.Check(e, time.Second); reason(err) != protocol.EvidenceSignature {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzEvidence feeds decoded answers and chunks to an open challenge.
func FuzzEvidence(f *testing.F) {
	p, key := peer(f)
	open := func() *Sent {
		w := want()
		w.Full = true
		s, err := new(Chooser).Compose(w, p, 1, [32]byte{9})
		if err != nil {
			f.Fatal(err)
		}
		return s
	}
	s := open()
	good, err := proto.Marshal(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: answer(s, key, []byte("{}"))}})
	if err != nil {
		f.Fatal(err)
	}
	chunk, err := proto.Marshal(&protocol.Message{Body: &protocol.Message_Chunk{Chunk: &protocol.Chunk{Id: s.Message.Id, Size: 3, Data: []byte("abc")}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(chunk)
	f.Add([]byte{})
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := protocol.DecodeMessage(b)
		if err != nil {
			return
		}
		c := *s
		c.chunks, c.arrived, c.total = make([][]byte, len(s.Ops)), make([]uint64, len(s.Ops)), 0
		if k := m.GetChunk(); k != nil {
			if err := c.Chunk(k); err != nil && reason(err) == "" {
				t.Fatalf("no typed reason: %v", err)
			}
		}
		if e := m.GetEvidence(); e != nil {
			_, err := c.Check(e, time.Second)
			if err != nil && reason(err) == "" {
				t.Fatalf("no typed reason: %v", err)
			}
			// Only what the key signed is accepted.
			if err == nil && !slices.Equal(e.Signature, answer(s, key, []byte("{}")).Signature) {
				t.Fatal("accepted what nobody signed")
			}
		}
	})
}

func BenchmarkComposeAndCheck(b *testing.B) {
	p, key := peer(b)
	w := want()
	w.Full = true
	var c Chooser
	for b.Loop() {
		b.StopTimer()
		s := compose(b, &c, w, p)
		e := answer(s, key, make([]byte, protocol.InlineData))
		b.StartTimer()
		if _, err := c.Compose(w, p, 1, [32]byte{9}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Check(e, time.Second); err != nil {
			b.Fatal(err)
		}
	}
}
