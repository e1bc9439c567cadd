package hpcinit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"portcullis/images/manifest"
	"portcullis/rootfs/boot"
)

// FetchLimits bound a transfer. A server that stops, drips or closes is left
// and asked again for the rest; progress resets the count of tries.
type FetchLimits struct {
	Head    time.Duration // connection and answer's head
	Stall   time.Duration // without a byte
	Chunk   time.Duration // for one chunk, which makes a lowest rate
	Total   time.Duration // for the whole file
	Tries   int           // in a row without a new chunk
	Backoff time.Duration // before the first new try; doubles up to BackoffCap
	Cap     time.Duration
}

// DefaultFetchLimits fit the slowest link that makes sense, 10 Mbit/s, and a
// gateway that restarts in between.
var DefaultFetchLimits = FetchLimits{
	Head: 5 * time.Second, Stall: 5 * time.Second, Chunk: 20 * time.Second, Total: 5 * time.Minute,
	Tries: 10, Backoff: 100 * time.Millisecond, Cap: 4 * time.Second,
}

// fetchSmall reads a whole file of at most limit bytes.
func fetchSmall(ctx context.Context, src Source, name string, limit int64, lim FetchLimits) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, lim.Total)
	defer cancel()
	var out []byte
	err := retry(ctx, lim, func() (bool, error) {
		a, err := get(ctx, src, name, 0, 0, lim.Head)
		if err != nil {
			return false, err
		}
		defer a.close()
		if a.size > limit {
			return false, boot.Failf(ReasonSize, "%s has %d bytes, at most %d are read", name, a.size, limit)
		}
		out = make([]byte, a.size)
		return false, a.read(ctx, out, lim)
	})
	return out, err
}

// retry calls try until it succeeds, fails for good, or brings no progress
// lim.Tries times in a row.
func retry(ctx context.Context, lim FetchLimits, try func() (progress bool, err error)) error {
	wait := lim.Backoff
	for failed := 0; ; {
		progress, err := try()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return boot.Failf(ReasonFetchTime, "not done within %v, last: %w", lim.Total, err)
		case !isTemporary(err):
			return err
		}
		if progress {
			failed, wait = 0, lim.Backoff
		}
		if failed++; failed >= lim.Tries {
			var f *boot.Failure
			if errors.As(err, &f) {
				return err
			}
			return boot.Failf(ReasonFetch, "%d tries in a row without progress, last: %w", failed, err)
		}
		pause(ctx, wait)
		wait = min(2*wait, lim.Cap)
	}
}

// read fills b from the body, within the limits of a chunk.
func (a *answer) read(ctx context.Context, b []byte, lim FetchLimits) error {
	end := time.Now().Add(lim.Chunk)
	for done := 0; done < len(b); {
		deadline := time.Now().Add(lim.Stall)
		if end.Before(deadline) {
			deadline = end
		}
		if ctx.Err() != nil {
			return temporary{ctx.Err()}
		}
		if err := a.conn.SetReadDeadline(deadline); err != nil {
			return temporary{err}
		}
		n, err := a.body.Read(b[done:])
		done += n
		if err != nil && done < len(b) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return temporary{err}
		}
	}
	return nil
}

// download brings a file of known chunks into memory.
type download struct {
	src      Source
	artefact manifest.Artefact
	dst      []byte
	lim      FetchLimits
	received atomic.Int64 // bytes in whole chunks, for the progress line
	resumes  int          // connections beyond the first
}

// run transfers all chunks in order and checks each while the next ones
// arrive, then asks once more for those that were wrong. It returns only when
// every chunk in dst has its digest.
func (d *download) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.lim.Total)
	defer cancel()
	bad, err := d.pass(ctx, d.all())
	if err != nil {
		return err
	}
	if len(bad) == 0 {
		return nil
	}
	bad, err = d.pass(ctx, bad)
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		return boot.Failf(ReasonChunk, "%d chunks of %s are wrong twice, the first is chunk %d", len(bad), d.artefact.Name, bad[0])
	}
	return nil
}

func (d *download) all() []int {
	out := make([]int, len(d.artefact.Chunks))
	for i := range out {
		out[i] = i
	}
	return out
}

// chunk is the place of chunk i in dst.
func (d *download) chunk(i int) []byte {
	from := i * manifest.ChunkSize
	return d.dst[from:min(from+manifest.ChunkSize, len(d.dst))]
}

// pass transfers the chunks in todo, which is sorted, and returns those whose
// digest is wrong.
func (d *download) pass(ctx context.Context, todo []int) (bad []int, err error) {
	jobs := make(chan int, len(todo)) // never full, so the transfer never waits for the hashing
	wrong := make([]bool, len(d.artefact.Chunks))
	errs := make(chan error, runtime.GOMAXPROCS(0))
	var workers sync.WaitGroup
	for range cap(errs) {
		workers.Go(func() {
			errs <- boot.Guard(func() error {
				for i := range jobs {
					wrong[i] = fmt.Sprintf("%x", sha256.Sum256(d.chunk(i))) != d.artefact.Chunks[i]
				}
				return nil
			})
		})
	}
	err = d.transfer(ctx, todo, jobs)
	close(jobs)
	workers.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	for _, i := range todo {
		if wrong[i] {
			bad = append(bad, i)
		}
	}
	return bad, err
}

// transfer asks for runs of neighbouring chunks, each run in one request, and
// goes on behind the last whole chunk when the connection breaks.
func (d *download) transfer(ctx context.Context, todo []int, jobs chan<- int) error {
	next := 0 // in todo
	started := false
	return retry(ctx, d.lim, func() (bool, error) {
		if started {
			d.resumes++
		}
		started = true
		before := next
		for next < len(todo) {
			if err := d.request(ctx, todo, &next, jobs); err != nil {
				return next > before, err
			}
		}
		return true, nil
	})
}

// request transfers the longest run of neighbours that begins at todo[*next].
func (d *download) request(ctx context.Context, todo []int, next *int, jobs chan<- int) error {
	last := *next
	for last+1 < len(todo) && todo[last+1] == todo[last]+1 {
		last++
	}
	from := int64(todo[*next]) * manifest.ChunkSize
	to := min(int64(todo[last]+1)*manifest.ChunkSize, d.artefact.Size)
	a, err := get(ctx, d.src, d.artefact.Name, from, to, d.lim.Head)
	if err != nil {
		return err
	}
	defer a.close()
	if a.total != d.artefact.Size {
		return boot.Failf(ReasonSize, "%s has %d bytes on the gateway, %d in the manifest", d.artefact.Name, a.total, d.artefact.Size)
	}
	for *next <= last {
		i := todo[*next]
		if err := a.read(ctx, d.chunk(i), d.lim); err != nil {
			return err
		}
		d.received.Add(int64(len(d.chunk(i))))
		jobs <- i
		*next++
	}
	return nil
}
