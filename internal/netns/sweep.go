package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var ownedForm = regexp.MustCompile(`^(.*)-([0-9]+)-[0-9]+-[a-z0-9]+$`)

// Sweep removes every namespace made by a Lab of this prefix whose making
// process is dead, together with the processes still inside.
func Sweep(prefix string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("netns: sweep: %w", err)
	}
	var errs []error
	for _, e := range entries {
		m := ownedForm.FindStringSubmatch(e.Name())
		if m == nil || m[1] != prefix {
			continue
		}
		if pid, err := strconv.Atoi(m[2]); err != nil || alive(pid) {
			continue
		}
		if err := remove(e.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// remove ends what runs inside and takes the name away; interfaces go with it.
func remove(name string) error {
	path := filepath.Join(dir, name)
	if id, err := inode(path); err == nil {
		for range 50 {
			if endProcesses(id) == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := vnetns.DeleteNamed(name); err != nil {
		return fmt.Errorf("netns: delete %s: %w", name, err)
	}
	return nil
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// endProcesses kills every process whose namespace is id and counts them. The
// own process is spared: a thread of ours may be inside for the time of a Do.
func endProcesses(id uint64) int {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	self, _ := inode("/proc/1/ns/net")
	if id == self {
		return 0
	}
	n := 0
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() || pid == 1 {
			continue
		}
		base := filepath.Join("/proc", p.Name())
		if got, err := inode(filepath.Join(base, "ns/net")); err != nil || got != id {
			continue
		}
		if stat, err := os.ReadFile(filepath.Join(base, "stat")); err == nil && strings.Contains(string(stat), ") Z ") {
			continue // dead, waits for its parent only
		}
		syscall.Kill(pid, syscall.SIGKILL)
		n++
	}
	return n
}
