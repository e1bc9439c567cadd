// Package proxy is an agent that was moved to another machine, in two halves, which run
// in cmd/hpc-lab. One takes the place of the agent on the PC that is asked: it has
// read all that the agent is, its key and the epoch, out of the agent's memory, goes on
// with its connection, and answers with what the other half, on a second PC, finds there
// with the agent's own probes. Whoever moves the files between the two is the line
// between the machines, which the Pi does not see.
package proxy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"portcullis/agent/bootinfo"
	"portcullis/agent/channel"
	"portcullis/agent/claim"
	"portcullis/agent/probe"
	"portcullis/attestserver/protocol"
)

// Question and Answer are the files in the directory of each half.
const (
	Question = "question"
	Answer   = "answer"
)

// proxied is a question with what keys of ops are derived from.
type proxied struct {
	Binding   []byte `json:"binding"`
	Challenge []byte `json:"challenge"`
}

// poll is how often a half looks for a file.
const poll = 50 * time.Millisecond

// take waits for a file, reads and removes it.
func take(ctx context.Context, name string) ([]byte, error) {
	for {
		b, err := os.ReadFile(name)
		if err == nil {
			return b, os.Remove(name)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(poll):
		}
	}
}

// put writes a file that is whole when it is there.
func put(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// Tool runs one of the halves: proxy PID DIR, or answer DIR. found is false for other words.
func Tool(ctx context.Context, out io.Writer, args []string) (found bool, err error) {
	switch {
	case args[0] == "proxy" && len(args) == 3:
		return true, proxy(ctx, out, args[1], args[2])
	case args[0] == "answer" && len(args) == 2:
		return true, answers(ctx, args[1])
	}
	return false, nil
}

// answers is the half on the second PC. It runs the agent's probes, as they are.
func answers(ctx context.Context, dir string) error {
	probes := map[string]protocol.Probe{}
	for _, p := range probe.All(probe.Host{}) {
		probes[p.Name()] = p
	}
	for {
		b, err := take(ctx, filepath.Join(dir, Question))
		if err != nil {
			return err
		}
		var q proxied
		var c protocol.Challenge
		if err := json.Unmarshal(b, &q); err != nil {
			return err
		}
		if err := proto.Unmarshal(q.Challenge, &c); err != nil {
			return err
		}
		if err := c.Check(); err != nil || len(q.Binding) != len(protocol.Binding{}) {
			return fmt.Errorf("a question with a binding of %d bytes: %w", len(q.Binding), err)
		}
		var out []*protocol.OpResult
		arrived := time.Now()
		for i, op := range c.Ops {
			r := &protocol.OpResult{Name: op.Name, StartedUs: time.Since(arrived).Microseconds()}
			if err := probed(ctx, probes[op.Name], &c, protocol.Binding(q.Binding), i, r); err != nil {
				r.Error, r.Digest, r.Data = err.Error()[:min(len(err.Error()), protocol.MaxReasonBytes)], make([]byte, 32), nil
			}
			r.FinishedUs = time.Since(arrived).Microseconds()
			out = append(out, r)
		}
		if err := put(filepath.Join(dir, Answer), out); err != nil {
			return err
		}
	}
}

func probed(ctx context.Context, p protocol.Probe, c *protocol.Challenge, binding protocol.Binding, i int, r *protocol.OpResult) error {
	if p == nil {
		return errors.New("no such probe")
	}
	key, err := protocol.DeriveOpKey([32]byte(c.Nonce), binding, [16]byte(c.Id), uint32(i))
	if err != nil {
		return err
	}
	out, err := p.Run(ctx, key, c.Ops[i].Params)
	r.Digest, r.Data = out.Digest[:], out.Data
	return err
}

// proxy is the half on the PC that is asked.
func proxy(ctx context.Context, out io.Writer, pid, dir string) error {
	info, err := bootinfo.Read(bootinfo.Path)
	if err != nil {
		return err
	}
	facts := claim.Facts{Session: info.Session, Gateway: info.Key()}
	for text, to := range map[string]*[32]byte{info.ManifestDigest: &facts.ManifestDigest, info.RootHash: &facts.RootHash} {
		b, err := hex.DecodeString(text)
		if err != nil || copy(to[:], b) != 32 {
			return fmt.Errorf("boot note: %q", text)
		}
	}
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	agent, err := os.FindProcess(n)
	if err != nil {
		return err
	}
	// It stands still meanwhile: with its next connection the epoch would be another, and
	// the one that was read nothing that continues it.
	if err := agent.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	key, err := stolenKey(n)
	if err != nil {
		return err
	}
	if err := agent.Kill(); err != nil {
		return err
	}
	conn, err := channel.Dial(ctx, info.Gateway, facts, key)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "ready: epoch %d\n", conn.Epoch)
	for {
		m, err := conn.Receive(protocol.MaxFrame)
		if err != nil {
			return err
		}
		switch body := m.Body.(type) {
		case *protocol.Message_Challenge:
			err = pass(ctx, conn, key, dir, body.Challenge)
		case *protocol.Message_Rekey:
			conn, err = channel.Dial(ctx, info.Gateway, facts, key)
		default:
			err = errors.New("another message than a challenge")
		}
		if err != nil {
			return err
		}
	}
}

// pass has a challenge answered elsewhere and signs what comes back.
func pass(ctx context.Context, conn *channel.Conn, key *claim.Key, dir string, c *protocol.Challenge) error {
	b, err := proto.Marshal(c)
	if err != nil {
		return err
	}
	started, err := claim.Uptime()
	if err != nil {
		return err
	}
	if err := put(filepath.Join(dir, Question), proxied{conn.Binding[:], b}); err != nil {
		return err
	}
	if b, err = take(ctx, filepath.Join(dir, Answer)); err != nil {
		return err
	}
	finished, err := claim.Uptime()
	if err != nil {
		return err
	}
	e := &protocol.Evidence{Id: c.Id, Sequence: c.Sequence, Previous: c.Previous, StartedMs: started.Milliseconds(), FinishedMs: finished.Milliseconds()}
	if err := json.Unmarshal(b, &e.Results); err != nil {
		return err
	}
	data := make([][]byte, len(e.Results))
	for i, r := range e.Results {
		data[i], r.DataSize = r.Data, uint64(len(r.Data))
		if len(r.Data) <= protocol.InlineData {
			continue
		}
		for offset := 0; offset < len(data[i]); offset += protocol.ChunkSize {
			end := min(offset+protocol.ChunkSize, len(data[i]))
			if err := conn.Send(&protocol.Message{Body: &protocol.Message_Chunk{Chunk: &protocol.Chunk{Id: c.Id, Index: uint32(i), Offset: uint64(offset), Size: uint64(len(data[i])), Data: data[i][offset:end]}}}); err != nil {
				return err
			}
		}
		r.Data = nil
	}
	e.Signature = ed25519.Sign(key.Private(), protocol.EvidenceTranscript(protocol.ChallengeDigest(c), conn.Binding, e, data))
	return conn.Send(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: e}})
}

// memory is what a process can write to, by address.
type memory map[uint64][]byte

// at returns n bytes at an address, nil where there is no such memory.
func (m memory) at(address uint64, n int) []byte {
	for from, b := range m {
		if address >= from && address-from <= uint64(len(b)) && uint64(n) <= uint64(len(b))-(address-from) {
			return b[address-from:][:n]
		}
	}
	return nil
}

// find returns where b stands, at multiples of 8.
func (m memory) find(b []byte) (out []uint64) {
	for from, all := range m {
		for at := 0; ; at++ {
			i := bytes.Index(all[at:], b)
			if i < 0 {
				break
			}
			if at += i; at%8 == 0 {
				out = append(out, from+uint64(at))
			}
		}
	}
	return out
}

// stolenKey reads the agent's key and its epoch out of its memory, as who has root can.
// The public half stands in its certificate; the private key is the seed and the public
// half; a claim.Key is the slice of that, a lock and a pointer to the epoch: its
// number and 32 bytes.
func stolenKey(pid int) (*claim.Key, error) {
	m, err := writableMemory(pid)
	if err != nil {
		return nil, err
	}
	head, err := protocol.SPKI(make(ed25519.PublicKey, ed25519.PublicKeySize))
	if err != nil {
		return nil, err
	}
	head = head[:len(head)-ed25519.PublicKeySize]
	tried := map[string]bool{}
	for _, b := range m {
		for rest := b; ; {
			i := bytes.Index(rest, head)
			if i < 0 || i+len(head)+ed25519.PublicKeySize > len(rest) {
				break
			}
			rest = rest[i+len(head):]
			public := rest[:ed25519.PublicKeySize]
			if tried[string(public)] {
				continue
			}
			tried[string(public)] = true
			if key := m.keyOf(public); key != nil {
				return key, nil
			}
		}
	}
	return nil, errors.New("the agent's key is not in its memory")
}

func (m memory) keyOf(public []byte) *claim.Key {
	for _, at := range m.find(public) {
		seed := m.at(at-ed25519.SeedSize, ed25519.SeedSize)
		if seed == nil || !bytes.Equal(ed25519.NewKeyFromSeed(seed)[ed25519.SeedSize:], public) {
			continue
		}
		slice := binary.LittleEndian.AppendUint64(nil, at-ed25519.SeedSize)
		for _, field := range []uint64{ed25519.PrivateKeySize, ed25519.PrivateKeySize, 0} { // length, room, the lock
			slice = binary.LittleEndian.AppendUint64(slice, field)
		}
		for _, holder := range m.find(slice) {
			if p := m.at(holder+uint64(len(slice)), 8); p != nil {
				if e := m.at(binary.LittleEndian.Uint64(p), 8+32); e != nil && binary.LittleEndian.Uint64(e) > 0 && binary.LittleEndian.Uint64(e) < 1<<20 {
					return claim.Taken(ed25519.NewKeyFromSeed(seed), protocol.OldEpoch(binary.LittleEndian.Uint64(e), [32]byte(e[8:])))
				}
			}
		}
	}
	return nil
}

// writableMemory reads what a process can write to and has touched.
func writableMemory(pid int) (memory, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := memory{}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n != 3 || perms != "rw-p" || to-from > 64<<20 {
			continue
		}
		b := make([]byte, to-from)
		if n, _ := f.ReadAt(b, int64(from)); n > 0 {
			m[from] = b[:n]
		}
	}
	return m, nil
}
