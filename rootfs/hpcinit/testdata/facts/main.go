// Command facts stands in for init and for the agent in the boot tests: it
// prints what it finds in the system that hpc-init made, as "fact: name=value".
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/agent/bootinfo"
)

func main() {
	if os.Getpid() != 1 {
		agent()
	}
	fact("pid", os.Getpid())
	fact("uptime", uptime())
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, l := range strings.Split(strings.TrimSpace(string(mounts)), "\n") {
		fact("mount", l)
	}
	names, _ := filepath.Glob("/*")
	fact("root", strings.Join(names, " "))
	st, err := os.Stat(bootinfo.Path)
	fact("note-mode", err, st.Mode())
	info, err := bootinfo.Read(bootinfo.Path)
	fact("note", err, info.Session, info.Gateway, info.RootDevice, info.LoopDevice, info.RootHash, info.ManifestDigest)
	fact("agent-root", sameRoot())
	fact("write-upper", os.WriteFile("/etc/written", []byte("x"), 0o644))
	fact("write-verity", write(info.RootDevice))
	fact("write-loop", write(info.LoopDevice))
	fact("grow-upper", fill("/etc/fill"))
	start := time.Now()
	fact("read-filler", readAll("/usr/share/filler"))
	fact("read-seconds", fmt.Sprintf("%.2f", time.Since(start).Seconds()))
	huge, _ := os.ReadFile("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
	fact("shmem", strings.TrimSpace(string(huge)))
	fact("end", "ok")
	time.Sleep(200 * time.Millisecond) // the console drains
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func fact(name string, values ...any) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "fact: %s=", name)
	for i, v := range values {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprint(&b, v)
	}
	fmt.Println(b.String())
}

// agent stays until the machine ends, as the real one does.
func agent() {
	exe, err := os.Readlink("/proc/self/exe")
	fact("agent-exe", err, exe)
	fact("agent-session", unixSession())
	for {
		time.Sleep(time.Hour)
	}
}

func unixSession() bool {
	sid, err := unix.Getsid(0)
	return err == nil && sid == os.Getpid()
}

// sameRoot finds the agent from the outside and compares its root with ours,
// by what the kernel shows of it to us.
func sameRoot() string {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, l := range links {
		exe, err := os.Readlink(l)
		if err != nil || !strings.HasSuffix(exe, "hpc-agent") {
			continue
		}
		dir := filepath.Dir(l)
		root, err := os.Readlink(dir + "/root")
		ours, _ := os.ReadFile("/proc/1/mountinfo")
		theirs, _ := os.ReadFile(dir + "/mountinfo")
		stat, _ := os.ReadFile(dir + "/stat")
		_, after, _ := strings.Cut(string(stat), ") ")
		parent := strings.Fields(after)[1]
		return fmt.Sprintf("exe=%s root=%s err=%v same-mounts=%v parent=%s", exe, root, err, bytes.Equal(ours, theirs), parent)
	}
	return "no agent"
}

func write(dev string) error {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return errors.Unwrap(err)
	}
	defer f.Close()
	if _, err = f.WriteAt(make([]byte, 4096), 0); err == nil {
		err = f.Sync()
	}
	return err
}

// fill writes until the upper layer is full and says that it was.
func fill(path string) string {
	f, err := os.Create(path)
	if err != nil {
		return err.Error()
	}
	defer os.Remove(path)
	defer f.Close()
	b := make([]byte, 1<<20)
	for n := 0; n < 4096; n++ {
		if _, err := f.Write(b); err != nil {
			return fmt.Sprint(errors.Is(err, syscall.ENOSPC))
		}
	}
	return "never full"
}

func readAll(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	n, err := io.Copy(io.Discard, f)
	if errors.Is(err, syscall.EIO) {
		return "input/output error"
	}
	return fmt.Sprintf("%d bytes, %v", n, err)
}

func uptime() string {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return fmt.Sprintf("%.2f", float64(ts.Nano())/1e9)
}
