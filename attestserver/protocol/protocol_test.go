package protocol

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
)

// pair returns both ends of one TLS connection between fresh keys.
func pair(t testing.TB) (agent, gateway *tls.Conn, agentKey, gatewayKey ed25519.PrivateKey) {
	t.Helper()
	_, agentKey, _ = ed25519.GenerateKey(rand.Reader)
	_, gatewayKey, _ = ed25519.GenerateKey(rand.Reader)
	server, err := ServerConfig(gatewayKey)
	if err != nil {
		t.Fatal(err)
	}
	client, err := ClientConfig(agentKey, gatewayKey.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	a, g := net.Pipe()
	t.Cleanup(func() { a.Close(); g.Close() })
	agent, gateway = tls.Client(a, client), tls.Server(g, server)
	done := make(chan error, 1)
	go func() { done <- agent.Handshake() }()
	if err := gateway.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return agent, gateway, agentKey, gatewayKey
}

func input(t testing.TB, agentKey, gatewayKey ed25519.PrivateKey) BindInput {
	t.Helper()
	a, err := SPKI(agentKey.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	g, err := SPKI(gatewayKey.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return BindInput{AgentKey: a, GatewayKey: g, Session: "aaaaaaaaaaaaaaaaaaaaaaaaaa", GatewayNonce: [32]byte{1}, AgentNonce: [32]byte{2}}
}

func TestBindingIsEqualAtBothEndsAndNowhereElse(t *testing.T) {
	agent, gateway, ak, gk := pair(t)
	in := input(t, ak, gk)
	a, err := Bind(agent.ConnectionState(), in)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Bind(gateway.ConnectionState(), in)
	if err != nil {
		t.Fatal(err)
	}
	if a != g {
		t.Fatal("the two ends differ")
	}
	changes := map[string]func(*BindInput){
		"session":       func(i *BindInput) { i.Session = "baaaaaaaaaaaaaaaaaaaaaaaaa" },
		"gateway nonce": func(i *BindInput) { i.GatewayNonce[31] ^= 1 },
		"agent nonce":   func(i *BindInput) { i.AgentNonce[31] ^= 1 },
		"agent key":     func(i *BindInput) { i.AgentKey = append([]byte{0}, i.AgentKey...) },
		"gateway key":   func(i *BindInput) { i.GatewayKey = append([]byte{0}, i.GatewayKey...) },
		"roles swapped": func(i *BindInput) { i.AgentKey, i.GatewayKey = i.GatewayKey, i.AgentKey },
	}
	for name, change := range changes {
		other := in
		change(&other)
		if b, err := Bind(agent.ConnectionState(), other); err != nil || b == a {
			t.Errorf("%s: same binding (%v)", name, err)
		}
	}
	agent2, _, _, _ := pair(t)
	if b, err := Bind(agent2.ConnectionState(), in); err != nil || b == a {
		t.Errorf("another connection: same binding (%v)", err)
	}
}

// The exporters of the two roles must not be interchangeable, or an answer
// could be reflected.
func TestReflectionOneExporterIsNotTheOther(t *testing.T) {
	in := BindInput{Session: "s"}
	x, y := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	if combine(x, y, in) == combine(y, x, in) {
		t.Fatal("the roles' exporters commute")
	}
	agent, _, _, _ := pair(t)
	cs := agent.ConnectionState()
	a, err := cs.ExportKeyingMaterial(agentExporter, nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	g, err := cs.ExportKeyingMaterial(gatewayExporter, nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, g) {
		t.Fatal("both roles export the same")
	}
}

func TestBindRefusesWhatIsNoFullTLS13(t *testing.T) {
	agent, _, _, _ := pair(t)
	for name, change := range map[string]func(*tls.ConnectionState){
		"TLS 1.2":            func(cs *tls.ConnectionState) { cs.Version = tls.VersionTLS12 },
		"handshake not done": func(cs *tls.ConnectionState) { cs.HandshakeComplete = false },
		"resumed":            func(cs *tls.ConnectionState) { cs.DidResume = true },
	} {
		cs := agent.ConnectionState()
		change(&cs)
		if _, err := Bind(cs, BindInput{}); !errors.Is(err, ErrBinding) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServerRefusesOldTLSAndMissingCertificates(t *testing.T) {
	_, gk, _ := ed25519.GenerateKey(rand.Reader)
	server, err := ServerConfig(gk)
	if err != nil {
		t.Fatal(err)
	}
	_, ak, _ := ed25519.GenerateKey(rand.Reader)
	client, err := ClientConfig(ak, gk.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":        func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"no certificate": func(c *tls.Config) { c.Certificates = nil },
	} {
		c := client.Clone()
		change(c)
		a, g := net.Pipe()
		go func() { tls.Client(a, c).Handshake(); io.Copy(io.Discard, a) }()
		if err := tls.Server(g, server).Handshake(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		a.Close()
		g.Close()
	}
}

// The keys are those of HKDF in one step, whatever is done once for all of them.
func TestOpKeysAreHKDF(t *testing.T) {
	nonce, binding, id := [32]byte{1, 2}, Binding{3, 4}, [16]byte{5, 6}
	keys, err := NewOpKeys(nonce, binding, id)
	if err != nil {
		t.Fatal(err)
	}
	for index := range uint32(MaxOps) {
		info := binary.BigEndian.AppendUint32(slices.Concat([]byte(opLabel), binding[:], id[:]), index)
		want, err := hkdf.Key(sha256.New, nonce[:], nil, string(info), 32)
		if err != nil {
			t.Fatal(err)
		}
		k, err := keys.Key(index)
		one, err2 := DeriveOpKey(nonce, binding, id, index)
		if err != nil || err2 != nil || k != OpKey(want) || one != k {
			t.Fatalf("op %d: %x and %x, want %x", index, k, one, want)
		}
	}
}

func TestOpKeyDependsOnEverything(t *testing.T) {
	base, err := DeriveOpKey([32]byte{}, Binding{}, [16]byte{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[OpKey]string{base: "base"}
	add := func(name string, k OpKey, err error) {
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[k]; ok {
			t.Fatalf("%s has the key of %s", name, other)
		}
		seen[k] = name
	}
	for i := range 256 {
		n := [32]byte{}
		n[i/8] ^= 1 << (i % 8)
		k, err := DeriveOpKey(n, Binding{}, [16]byte{}, 0)
		add("nonce bit", k, err)
	}
	for i := range 512 {
		b := Binding{}
		b[i/8] ^= 1 << (i % 8)
		k, err := DeriveOpKey([32]byte{}, b, [16]byte{}, 0)
		add("binding bit", k, err)
	}
	for i := range 128 {
		id := [16]byte{}
		id[i/8] ^= 1 << (i % 8)
		k, err := DeriveOpKey([32]byte{}, Binding{}, id, 0)
		add("id bit", k, err)
	}
	for i := range 32 {
		k, err := DeriveOpKey([32]byte{}, Binding{}, [16]byte{}, 1<<i)
		add("index bit", k, err)
	}
	d := base.Digest("ktext", []byte("ab"), []byte("c"))
	for name, other := range map[string][32]byte{
		"name":     base.Digest("ktexu", []byte("ab"), []byte("c")),
		"params":   base.Digest("ktext", []byte("aa"), []byte("c")),
		"boundary": base.Digest("ktext", []byte("a"), []byte("bc")),
		"data":     base.Digest("ktext", []byte("ab"), []byte("d")),
		"key":      OpKey{1}.Digest("ktext", []byte("ab"), []byte("c")),
	} {
		if SameDigest(d, other) {
			t.Errorf("%s does not matter", name)
		}
	}
}

// Whatever is changed in a signed message changes what was signed.
func TestTranscriptsCoverEveryField(t *testing.T) {
	gateway, _, _ := ed25519.GenerateKey(rand.Reader)
	c := &Claim{Session: "s", ManifestDigest: []byte{1}, RootHash: []byte{2}, UptimeMs: 3, Nonce: []byte{4}, PublicKey: []byte{5}, Epoch: 6}
	covers(t, c, []string{"signature", "proof"}, func(m proto.Message) []byte {
		return ClaimTranscript(m.(*Claim), gateway, [32]byte{}, Binding{})
	})
	q := &Challenge{Id: []byte{1}, Session: "s", Sequence: 1, Nonce: []byte{2}, DeadlineMs: 3, Previous: []byte{4}, Ops: []*Op{{Name: "a", Params: []byte{1}}}}
	covers(t, q, nil, func(m proto.Message) []byte { d := ChallengeDigest(m.(*Challenge)); return d[:] })
	covers(t, q.Ops[0], nil, func(m proto.Message) []byte {
		d := ChallengeDigest(&Challenge{Ops: []*Op{m.(*Op)}})
		return d[:]
	})
	e := &Evidence{Id: []byte{1}, Sequence: 1, StartedMs: 2, FinishedMs: 3, Previous: []byte{4},
		Results: []*OpResult{{Name: "a", Digest: []byte{1}, Data: []byte{2}, DataSize: 1, StartedUs: 4, FinishedUs: 5, Error: "x"}}}
	evidence := func(m *Evidence) []byte {
		data := make([][]byte, len(m.Results))
		for i, r := range m.Results {
			data[i] = r.Data
		}
		return EvidenceTranscript([32]byte{}, Binding{}, m, data)
	}
	covers(t, e, []string{"signature"}, func(m proto.Message) []byte { return evidence(m.(*Evidence)) })
	covers(t, e.Results[0], nil, func(m proto.Message) []byte { return evidence(&Evidence{Results: []*OpResult{m.(*OpResult)}}) })
}

// covers clears each field in turn and expects other bytes.
func covers(t *testing.T, m proto.Message, except []string, transcript func(proto.Message) []byte) {
	t.Helper()
	base := transcript(m)
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		skip := false
		for _, n := range except {
			skip = skip || n == string(f.Name())
		}
		if skip {
			continue
		}
		other := proto.Clone(m)
		if f.Kind().String() == "bool" {
			r := other.ProtoReflect()
			v := r.Get(f).Bool()
			r.Set(f, r.NewField(f))
			if !v {
				other.(*Op).Enrol = true
			}
		} else {
			other.ProtoReflect().Clear(f)
		}
		if bytes.Equal(base, transcript(other)) {
			t.Errorf("%s.%s is not covered", m.ProtoReflect().Descriptor().Name(), f.Name())
		}
	}
}

func TestStreamCarriesMessages(t *testing.T) {
	var b bytes.Buffer
	s := NewStream(&b)
	for i := range 3 {
		if err := s.Send(&Message{Body: &Message_Hello{Hello: &Hello{Version: uint32(i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	big := &Message{Body: &Message_Chunk{Chunk: &Chunk{Data: make([]byte, ChunkSize)}}}
	if err := s.Send(big); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		m, err := s.Receive(MaxFrame)
		if err != nil || m.GetHello().GetVersion() != uint32(i) {
			t.Fatalf("message %d: %v, %v", i, m, err)
		}
	}
	if m, err := s.Receive(MaxFrame); err != nil || !proto.Equal(m, big) {
		t.Fatal("chunk differs", err)
	}
	if _, err := s.Receive(MaxFrame); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
	if err := s.Send(&Message{Body: &Message_Chunk{Chunk: &Chunk{Data: make([]byte, MaxFrame)}}}); !errors.Is(err, ErrFrame) {
		t.Errorf("oversized message: %v", err)
	}
}

func TestInvariant11_StreamRefusesBadFrames(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"empty frame":     {[]byte{0, 0, 0, 0}, ErrFrame},
		"too long":        {[]byte{0, 0, 0x10, 1}, ErrFrame},
		"far too long":    {[]byte{0xff, 0xff, 0xff, 0xff}, ErrFrame},
		"not protobuf":    {[]byte{0, 0, 0, 1, 0xff}, ErrFrame},
		"no body":         {[]byte{0, 0, 0, 2, 0x78, 1}, ErrFrame},
		"truncated head":  {[]byte{0, 0}, io.ErrUnexpectedEOF},
		"truncated frame": {[]byte{0, 0, 0, 5, 1}, io.ErrUnexpectedEOF},
		"no payload":      {[]byte{0, 0, 0, 5}, io.ErrUnexpectedEOF},
	} {
		if _, err := NewStream(bytes.NewBuffer(c.bytes)).Receive(4096); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestValidSession(t *testing.T) {
	for s, want := range map[string]bool{
		"abcdefghijklmnopqrstuvwxyz": true, "22222222222222222222222222": true,
		"": false, "abc": false, "ABCDEFGHIJKLMNOPQRSTUVWXYZ": false, "abcdefghijklmnopqrstuvwxy1": false,
		"abcdefghijklmnopqrstuvwxyza": false, "abcdefghijklm/opqrstuvwxyz": false,
	} {
		if ValidSession(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}
