package boot

import (
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReasonWatchdog: a watchdog is there but cannot be armed.
const ReasonWatchdog Reason = "watchdog"

// WatchdogDevice is the first hardware watchdog.
const WatchdogDevice = "/dev/watchdog0"

// ioctls of a watchdog (include/uapi/linux/watchdog.h); the numbers are the same on
// amd64 and arm64.
const (
	wdiocKeepAlive  = 0x80045705
	wdiocSetTimeout = 0xC0045706
	wdiocGetTimeout = 0x80045707
)

// watchdogTimeouts are asked for in this order, in seconds: the Pi's own watchdog
// counts at most 15, others refuse what is not theirs.
var watchdogTimeouts = []int32{60, 30, 15}

// Watchdog restarts the machine when nobody says that the boot goes on. It is fed
// by a goroutine of its own, but only until the moment that Allow last gave: a step
// that hangs is not fed any longer than it was allowed to take.
type Watchdog struct {
	Timeout time.Duration

	f        *os.File
	mu       sync.Mutex
	until    time.Time
	stop     chan struct{}
	stopped  chan struct{}
	stopOnce sync.Once
}

// ArmWatchdog arms the watchdog behind path and allows the first step limit. An
// error that wraps fs.ErrNotExist says that this machine has none.
func ArmWatchdog(path string, limit time.Duration) (*Watchdog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, Failf(ReasonWatchdog, "%w", err)
	}
	w := &Watchdog{f: f, stop: make(chan struct{}), stopped: make(chan struct{})}
	for _, t := range watchdogTimeouts {
		if err = ioctl(f.Fd(), wdiocSetTimeout, unsafe.Pointer(&t)); err == nil {
			break
		}
	}
	var seconds int32
	if err := ioctl(f.Fd(), wdiocGetTimeout, unsafe.Pointer(&seconds)); err != nil || seconds <= 0 {
		seconds = watchdogTimeouts[len(watchdogTimeouts)-1] // it counts already; the shortest is safe to assume
	}
	w.Timeout = time.Duration(seconds) * time.Second
	w.Allow(limit)
	go Guard(func() error { w.feed(); return nil }) // one that stops feeding restarts the machine, as it should
	return w, nil
}

// Allow says that the boot goes on and that its next step may take limit.
func (w *Watchdog) Allow(limit time.Duration) {
	if w == nil { // a machine without one
		return
	}
	w.mu.Lock()
	w.until = time.Now().Add(limit)
	w.mu.Unlock()
}

func (w *Watchdog) feed() {
	defer close(w.stopped)
	tick := time.NewTicker(w.Timeout / 5)
	defer tick.Stop()
	for {
		w.mu.Lock()
		ok := time.Now().Before(w.until)
		w.mu.Unlock()
		if ok {
			unix.IoctlSetInt(int(w.f.Fd()), wdiocKeepAlive, 0) // a watchdog that cannot be fed restarts the machine, which says enough
		}
		select {
		case <-tick.C:
		case <-w.stop:
			return
		}
	}
}

// HandOver feeds the watchdog a last time and stops feeding. The device stays armed:
// it is closed by exec (O_CLOEXEC) without the magic character, which the driver takes for
// a crash and goes on counting, and the next init can open it at once.
func (w *Watchdog) HandOver() {
	if w == nil {
		return
	}
	w.stopOnce.Do(func() { close(w.stop) })
	<-w.stopped
	unix.IoctlSetInt(int(w.f.Fd()), wdiocKeepAlive, 0)
}
