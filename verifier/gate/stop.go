package gate

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// stopLimit is for the end of a process that was killed.
const stopLimit = 10 * time.Second

// stop ends what runc has made of a container that does not start: its own process, which would wait for
// ever to execute the program, and which the engine believes to have ended with the start. runc is its path,
// global what stands before the command.
func stop(runc string, global []string, id string) error {
	run := func(words ...string) ([]byte, error) {
		return exec.Command(runc, append(global[:len(global):len(global)], words...)...).Output()
	}
	b, err := run("state", id)
	if err != nil {
		return fmt.Errorf("%w: state: %v", ErrRunc, err)
	}
	pid, err := waiting(b)
	if pid == 0 {
		return err
	}
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(handle)
	if _, err := run("kill", id, "KILL"); err != nil {
		return fmt.Errorf("%w: kill: %v", ErrRunc, err)
	}
	fds := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
	for until := time.Now().Add(stopLimit); ; {
		n, err := unix.Poll(fds, int(time.Until(until).Milliseconds()))
		switch {
		case n > 0:
			return nil
		case time.Now().After(until):
			return fmt.Errorf("%w: process %d is there %s after its end", ErrRunc, pid, stopLimit)
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("%w: %v", ErrRunc, err)
		}
	}
}

// waiting reads the state of a container (OCI runtime specification, runtime.md, State): the process of one
// that was created and not started, 0 where it is neither. One that runs is not ended for somebody's question.
func waiting(b []byte) (pid int, err error) {
	var s struct {
		Status string `json:"status"`
		Pid    int    `json:"pid"`
	}
	err = json.Unmarshal(b, &s)
	switch {
	case err != nil || s.Status == "created" && s.Pid <= 0:
		return 0, fmt.Errorf("%w: its state is %.80q", ErrRunc, b)
	case s.Status != "created":
		return 0, nil
	}
	return s.Pid, nil
}
