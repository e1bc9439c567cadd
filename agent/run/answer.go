package run

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strings"
	"sync"
	"time"

	"portcullis/agent/channel"
	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
)

// answerer answers the challenges of one connection.
type answerer struct {
	conn   *channel.Conn
	key    *claim.Key
	probes map[string]protocol.Probe
	turn   *sync.Mutex // probes run one answer at a time, whatever connection asked
}

// answer runs the ops in the order asked, sends what is large in chunks and
// then the signed evidence.
func (a *answerer) answer(ctx context.Context, c *protocol.Challenge) error {
	if err := c.Check(); err != nil {
		return err
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	arrived := time.Now()
	started, err := claim.Uptime()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.DeadlineMs)*time.Millisecond)
	defer cancel()
	e := &protocol.Evidence{Id: c.Id, Sequence: c.Sequence, Previous: c.Previous, StartedMs: started.Milliseconds()}
	data := make([][]byte, len(c.Ops))
	for i, op := range c.Ops {
		r := &protocol.OpResult{Name: op.GetName(), StartedUs: time.Since(arrived).Microseconds()}
		out, err := a.run(ctx, c, i, op)
		if err != nil {
			out = protocol.Output{}
			r.Error = bounded(err.Error())
		}
		r.Digest, data[i], r.DataSize = out.Digest[:], out.Data, uint64(len(out.Data))
		r.FinishedUs = time.Since(arrived).Microseconds()
		if len(out.Data) <= protocol.InlineData {
			r.Data = out.Data
		} else if err := a.chunks(c.Id, uint32(i), out.Data); err != nil {
			return err
		}
		e.Results = append(e.Results, r)
	}
	finished, err := claim.Uptime()
	if err != nil {
		return err
	}
	e.FinishedMs = finished.Milliseconds()
	signed := protocol.EvidenceTranscript(protocol.ChallengeDigest(c), a.conn.Binding, e, data)
	e.Signature = ed25519.Sign(a.key.Private(), signed)
	return a.conn.Send(&protocol.Message{Body: &protocol.Message_Evidence{Evidence: e}})
}

func (a *answerer) run(ctx context.Context, c *protocol.Challenge, index int, op *protocol.Op) (out protocol.Output, err error) {
	p := a.probes[op.GetName()]
	if p == nil {
		return out, fmt.Errorf("no probe %.32q in this image", op.GetName())
	}
	key, err := protocol.DeriveOpKey([32]byte(c.Nonce), a.conn.Binding, [16]byte(c.Id), uint32(index))
	if err != nil {
		return out, err
	}
	// A probe reads a machine that may be in any state. A panic in it must cost
	// this op and not the key of this boot, which lives in this process only.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("probe panicked: %v", r)
		}
	}()
	if out, err = p.Run(ctx, key, op.Params); err != nil {
		return out, err
	}
	limit := protocol.MaxData
	if op.Enrol {
		limit = protocol.MaxEnrolData
	}
	if len(out.Data) > limit {
		return out, fmt.Errorf("%d bytes of data, at most %d", len(out.Data), limit)
	}
	return out, nil
}

func (a *answerer) chunks(id []byte, index uint32, data []byte) error {
	for offset := 0; offset < len(data); offset += protocol.ChunkSize {
		end := min(offset+protocol.ChunkSize, len(data))
		m := &protocol.Message{Body: &protocol.Message_Chunk{Chunk: &protocol.Chunk{
			Id: id, Index: index, Offset: uint64(offset), Size: uint64(len(data)), Data: data[offset:end]}}}
		if err := a.conn.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// bounded cuts s to what a result may hold; protobuf strings must be UTF-8.
func bounded(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), protocol.MaxReasonBytes)], "")
}
