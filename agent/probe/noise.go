package probe

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Noise keeps memory filled that would be free otherwise, with noise from a seed
// of the gateway, and proves random pieces of it.
//
// It makes room for clean copies scarce, and finds a machine that gave the
// memory away.
//
// It cannot see that pieces are computed anew when they are asked for: the noise
// follows from its seed. It only makes that cost time. What is resident is what
// the configuration says, a small part of the memory.
type Noise struct {
	Host
	mu     sync.Mutex
	seed   [32]byte
	bytes  []byte
	locked bool
	fill   time.Duration
}

// noiseShare: noise takes at most one part in noiseShare of the memory that is
// available when it is asked for.
const noiseShare = 4

// Name implements protocol.Probe.
func (*Noise) Name() string { return protocol.OpNoise }

// Run implements protocol.Probe.
func (p *Noise) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.NoiseParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	raw, _ := hex.DecodeString(want.Seed) // Check has seen it
	if err := p.resident(ctx, [32]byte(raw), want.Size); err != nil {
		return protocol.Output{}, err
	}
	d := protocol.NoiseData{Size: int64(len(p.bytes)), Locked: p.locked, FillMs: p.fill.Milliseconds()}
	out, err := protocol.EncodeOp(d)
	if err != nil {
		return protocol.Output{}, err
	}
	h := key.NewDigest(p.Name(), params)
	if p.bytes != nil {
		for _, s := range want.Slices {
			h.Write(p.bytes[s.Offset : s.Offset+s.Length])
		}
	}
	h.Write(out)
	return protocol.Output{Digest: protocol.Sum(h), Data: out}, nil
}

// resident fills memory once a seed. Without enough free memory there is none.
func (p *Noise) resident(ctx context.Context, seed [32]byte, size int64) error {
	if int64(len(p.bytes)) == size && p.seed == seed {
		return nil
	}
	p.drop()
	free, err := p.available()
	if err != nil {
		return err
	}
	if size > free/noiseShare {
		return nil
	}
	began := time.Now()
	// Outside of Go's heap: the collector would count it as garbage to come.
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("noise: %w", err)
	}
	p.bytes, p.seed, p.locked = b, seed, unix.Mlock(b) == nil
	var group sync.WaitGroup
	workers := int64(runtime.NumCPU())
	part := (size/workers + protocol.PageSize) &^ (protocol.PageSize - 1)
	for from := int64(0); from < size; from += part {
		group.Go(func() { fillNoise(ctx, seed, from, b[from:min(from+part, size)]) })
	}
	group.Wait()
	if err := alive(ctx); err != nil {
		p.drop()
		return err
	}
	p.fill = time.Since(began)
	return nil
}

// fillNoise writes in steps, so that a deadline ends it.
func fillNoise(ctx context.Context, seed [32]byte, from int64, b []byte) {
	for at := 0; at < len(b) && ctx.Err() == nil; at += protocol.MaxNoiseSlice {
		protocol.Noise(seed, from+int64(at), b[at:min(at+protocol.MaxNoiseSlice, len(b))])
	}
}

func (p *Noise) drop() {
	if p.bytes != nil {
		_ = unix.Munmap(p.bytes)
	}
	p.bytes, p.locked, p.fill = nil, false, 0
}

// available is MemAvailable in bytes.
func (h Host) available() (int64, error) {
	b, err := read(h.Proc, "meminfo")
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 48)
			if err != nil {
				return 0, fmt.Errorf("meminfo: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("meminfo: no MemAvailable")
}
