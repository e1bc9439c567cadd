// Command guest is init of a virtual machine with disks: it runs the portcullis
// program on them and prints what came of it, one line "fact: NAME=RESULT" each.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/images/flash"
	"portcullis/rootfs/boot"
	"portcullis/rootfs/boot/boottest"
)

const (
	program = "/portcullis"
	image   = "/image/pi.img.zst"
	key     = "/image/release.pub"
	seed    = "/image/seed.yml"
)

// The disks, found by what they say of themselves: their order is that of chance.
var card, tiny, locked string

func main() {
	fact("prepare", prepare())
	for _, s := range []struct {
		name string
		run  func() error
	}{
		{"list", list}, {"small", small}, {"write-protected", protected}, {"killed", killed}, {"resumed", resumed},
		{"partitions", partitions}, {"mounted", mounted}, {"held", held}, {"loop", loop},
	} {
		began := time.Now()
		err := s.run()
		fact(s.name, err)
		fmt.Printf("fact: %s-seconds=%.1f\n", s.name, time.Since(began).Seconds())
	}
	unix.Sync()
	fact("end", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func fact(name string, err error) {
	if err != nil {
		fmt.Printf("fact: %s=%s\n", name, strings.ReplaceAll(err.Error(), "\n", " | "))
		return
	}
	fmt.Printf("fact: %s=ok\n", name)
}

func prepare() error {
	if err := boottest.Prepare("/tmp"); err != nil {
		return err
	}
	for _, d := range []string{"/dev/sda", "/dev/sdb", "/dev/sdc"} {
		if err := wait(d); err != nil {
			return err
		}
	}
	return os.Setenv("XDG_STATE_HOME", "/tmp")
}

// wait waits for a file to be there.
func wait(path string) error {
	for range 100 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s does not come", path)
}

// call runs the program and returns the last JSON line of its output.
func call(args ...string) (map[string]any, []byte, error) {
	c := exec.Command(program, append([]string{"flash", "--json", "--yes"}, args...)...)
	var errOut bytes.Buffer
	c.Stderr = &errOut
	out, err := c.Output()
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var last map[string]any
	if jerr := json.Unmarshal(lines[len(lines)-1], &last); jerr != nil {
		return nil, out, fmt.Errorf("%v: %q %q", err, out, &errOut)
	}
	return last, out, err
}

// refused expects exit code 1 and a reason.
func refused(reason string, args ...string) error {
	last, _, err := call(args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || last["event"] != "flash.failed" || last["reason"] != reason {
		return fmt.Errorf("%v, %v", last, err)
	}
	return nil
}

func list() error {
	out, err := exec.Command(program, "flash", "--list", "--json").Output()
	if err != nil {
		return err
	}
	var disks []flash.Disk
	if err := json.Unmarshal(out, &disks); err != nil {
		return err
	}
	for _, d := range disks {
		switch what := fmt.Sprintf("%s %d %s ro=%v %s", d.Serial, d.Size, d.Transport, d.ReadOnly, d.Model); what {
		case "CARD-A 2147483648 virtio ro=false QEMU QEMU HARDDISK":
			card = d.Path
		case "CARD-B 104857600 virtio ro=false QEMU QEMU HARDDISK":
			tiny = d.Path
		case "CARD-C 2147483648 virtio ro=true QEMU QEMU HARDDISK":
			locked = d.Path
		default:
			return errors.New(what)
		}
	}
	if len(disks) != 3 || card == "" || tiny == "" || locked == "" {
		return fmt.Errorf("%d disks", len(disks))
	}
	return nil
}

func small() error     { return refused(flash.ReasonTooSmall, image, tiny) }
func protected() error { return refused(flash.ReasonReadOnly, image, locked) }

// killed ends a run with SIGKILL when part of the image is on the card.
func killed() error {
	c := exec.Command(program, "flash", "--json", "--yes", "--key", key, image, card)
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	s := bufio.NewScanner(out)
	hit := false
	for s.Scan() {
		var e struct {
			Event, Phase string
			Done, Total  int64
		}
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return err
		}
		if e.Event == "flash.progress" && e.Phase == flash.PhaseWrite && e.Done > 24<<20 && e.Done < e.Total {
			hit = true
			if err := c.Process.Kill(); err != nil {
				return err
			}
		}
	}
	if err := c.Wait(); err == nil || !hit {
		return fmt.Errorf("it was not killed in the middle: %v, %v", hit, err)
	}
	return nil
}

func resumed() error {
	last, out, err := call("--key", key, "--seed", seed, image, card)
	if err != nil || last["event"] != "flash.done" || !bytes.Contains(out, []byte(`"flash.resumed"`)) {
		return fmt.Errorf("%v, %v", last, err)
	}
	if kept, written := last["kept"].(float64), last["written"].(float64); kept < 4<<20 || written < 4<<20 || last["seeded"] != true {
		return fmt.Errorf("%v", last)
	}
	return nil
}

// partitions are there without anybody asking for them.
func partitions() error {
	for n := 1; n <= 5; n++ {
		if err := wait(fmt.Sprintf("%s%d", card, n)); err != nil {
			return err
		}
	}
	return nil
}

// unseen opens the disk as if sysfs had told of nothing: the kernel has the last word.
func unseen() error {
	d, err := flash.Host().Find(card)
	if err != nil {
		return err
	}
	d.Uses = nil
	if dev, err := flash.OpenDevice(d); flash.Reason(err) != flash.ReasonBusy {
		if err == nil {
			dev.Close()
		}
		return fmt.Errorf("opened although in use: %v", err)
	}
	return nil
}

func mounted() error {
	if err := os.MkdirAll("/mnt", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(card+"1", "/mnt", "vfat", unix.MS_RDONLY, "utf8"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	b, err := os.ReadFile("/mnt/seed.yml")
	want, wantErr := os.ReadFile(seed)
	if err != nil || wantErr != nil || !bytes.Equal(bytes.TrimRight(b, "\n"), bytes.TrimRight(want, "\n")) {
		return fmt.Errorf("the kernel reads other settings: %q, %v, %v", b, err, wantErr)
	}
	if err := refused(flash.ReasonMounted, "--force", image, card); err != nil {
		return err
	}
	if err := unseen(); err != nil {
		return err
	}
	return unix.Unmount("/mnt", 0)
}

func held() error {
	if _, err := boot.OpenLinear("held", card+"5", 0, 2048); err != nil {
		return err
	}
	if err := refused(flash.ReasonHeld, "--force", image, card); err != nil {
		return err
	}
	if err := unseen(); err != nil {
		return err
	}
	if err := boot.CloseMapped("held"); err != nil {
		return err
	}
	return refused(flash.ReasonPartition, "--force", image, card+"5")
}

// loop flashes a loop device over a file in memory.
func loop() error {
	f, err := os.Create("/tmp/card.img")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(1400 << 20); err != nil {
		return err
	}
	d, err := os.OpenFile("/dev/loop0", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.IoctlSetInt(int(d.Fd()), unix.LOOP_SET_FD, int(f.Fd())); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := refused(flash.ReasonNotRemovable, image, "/dev/loop0"); err != nil {
		return err
	}
	last, _, err := call("--force", image, "/dev/loop0")
	if err != nil || last["event"] != "flash.done" || last["kept"] != 0.0 {
		return fmt.Errorf("%v, %v", last, err)
	}
	return nil
}
