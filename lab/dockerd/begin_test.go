package dockerd

import (
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// A program lives on when the thread ends on which somebody had it started, and ends when it is told to.
func TestProgramOutlivesItsCaller(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	var ended chan struct{}
	var err error
	tid := syscall.Getpid()
	for tid == syscall.Getpid() { // the first thread never ends
		over := make(chan struct{})
		go func() {
			defer close(over)
			runtime.LockOSThread() // and ends with it
			if tid = syscall.Gettid(); tid != syscall.Getpid() {
				ended, err = begin(cmd)
			}
		}()
		<-over
	}
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); syscall.Tgkill(syscall.Getpid(), tid, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the thread is still there")
		}
	}
	if cmd.SysProcAttr.Pdeathsig != syscall.SIGKILL {
		t.Error("it does not end with this process")
	}
	cmd.Process.Signal(syscall.SIGTERM) // not the kernel's signal
	<-ended
	if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGTERM {
		t.Errorf("ended by %v", s.Signal())
	}
}
