package boot

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Uptime is the time since the kernel started, suspend included (CLOCK_BOOTTIME).
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// StageLog prints the progress of a boot, one line a step:
//
//	portcullis: stage=network t=4.21 interface=eth0 address=10.77.0.2/24
//	portcullis: failed stage=root t=9.80 reason=chunk-digest detail="chunk 3 …"
//
// A line is one write, so that kernel messages do not cut it. It is safe for
// concurrent use.
type StageLog struct {
	mu     sync.Mutex
	out    io.Writer
	uptime func() time.Duration
}

// NewStageLog writes to out and takes the time of each line from uptime.
func NewStageLog(out io.Writer, uptime func() time.Duration) *StageLog {
	return &StageLog{out: out, uptime: uptime}
}

// OpenConsole opens the kernel's console for writing, without making it the
// controlling terminal.
func OpenConsole() (*os.File, error) {
	return os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
}

// Redirect sends the lines that follow to out.
func (l *StageLog) Redirect(out io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = out
}

// Stage reports that a stage is done. The pairs are keys and values.
func (l *StageLog) Stage(name string, pairs ...any) { l.line("stage="+name, pairs) }

// Note reports something that neither ends a stage nor the boot.
func (l *StageLog) Note(name string, pairs ...any) { l.line("note="+name, pairs) }

// Failed reports the failure that ends the boot.
func (l *StageLog) Failed(stage string, err error) {
	l.line("failed stage="+stage, []any{"reason", string(ReasonOf(err)), "detail", detailOf(err)})
}

func (l *StageLog) line(head string, pairs []any) {
	var b strings.Builder
	fmt.Fprintf(&b, "portcullis: %s t=%.2f", head, l.uptime().Seconds())
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&b, " %v=%s", pairs[i], quoted(fmt.Sprint(pairs[i+1])))
	}
	b.WriteByte('\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	io.WriteString(l.out, b.String()) // a console that cannot be written to is nothing this program could report
}

// quoted leaves plain words alone and quotes whatever could be mistaken for
// another key or line: text from the network ends up here too.
func quoted(s string) string {
	if s == "" {
		return `""`
	}
	for _, c := range s {
		if c <= ' ' || c > '~' || c == '"' || c == '=' || c == '\\' {
			return fmt.Sprintf("%+q", s)
		}
	}
	return s
}
