package guard

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An archive is read before anybody knows whether it is approved. Until then whoever may call the guard
// could take its memory, its disk and its time with what is none, so each of them has a bound.
const (
	maxLoads    = 2 // of callers at once; more wait. Root has as many of its own
	intakeBytes = 64 << 10
	intakeTime  = 30 * time.Second // in which intakeBytes have to come
	intakeLook  = 8 << 20          // bytes between two looks at the room that is left
	intakeRoom  = 64 << 20         // bytes that stay free: the log lies on the same disk, and nothing is allowed without it
)

// enter waits for a place among those who load; leave gives it back.
func (g *Guard) enter(ctx context.Context, caller string) (leave func(), err error) {
	places := g.loads
	if first(caller) {
		places = g.rootLoads
	}
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// intake is the body of a load.
type intake struct {
	from  io.Reader
	until func(time.Time) error // ends the caller's time at the connection
	now   func() time.Time
	free  func() (int64, error) // bytes

	left time.Duration // in which the rest of intakeBytes has to come
	got  int64         // of them
	look int64         // bytes until the next look
}

func (g *Guard) intake(c *call) *intake {
	return &intake{from: c.r.Body, until: http.NewResponseController(c.w).SetReadDeadline, now: g.opt.Clock.Now, free: func() (int64, error) { return freeOn(g.opt.StateDir) }, left: intakeTime}
}

// Read counts only the time in which it waits for the caller.
func (i *intake) Read(b []byte) (int, error) {
	if i.look <= 0 {
		if err := room(i.free, 0); err != nil {
			return 0, err
		}
		i.look = intakeLook
	}
	began := i.now()
	i.until(began.Add(i.left)) // what knows no such end is no connection
	n, err := i.from.Read(b)
	i.left -= i.now().Sub(began)
	i.got += int64(n)
	i.look -= int64(n)
	if i.got >= intakeBytes {
		i.got, i.left = 0, intakeTime
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = refuse(ReasonSlow, "less than %d bytes in %s", intakeBytes, intakeTime)
	}
	return n, err
}

// roomy is a file on the disk of the log that becomes longer than what comes in: a few bytes of an archive, unpacked,
// are many of a list.
type roomy struct {
	to   io.Writer
	free func() (int64, error)
	look int64 // bytes until the next look
}

// roomyLook is how much is written between two looks: all who load at once stay within intakeRoom.
const roomyLook = 1 << 20

func (r *roomy) Write(b []byte) (int, error) {
	if r.look -= int64(len(b)); r.look < 0 {
		if err := room(r.free, len(b)); err != nil {
			return 0, err
		}
		r.look = roomyLook
	}
	return r.to.Write(b)
}

// room tells whether so much more leaves the log its own.
func room(free func() (int64, error), more int) error {
	left, err := free()
	if err == nil && left-int64(more) < intakeRoom {
		err = refuse(ReasonRoom, "%d bytes are left, %d stay free for the log", left, intakeRoom)
	}
	return err
}

func freeOn(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}
