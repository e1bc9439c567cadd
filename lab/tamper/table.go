package tamper

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"portcullis/lab"
)

// bootLimit bounds one boot to trusted.
const bootLimit = 6 * time.Minute

const hpcLab = "/usr/lib/portcullis/hpc-lab"

// quiet starts a command that outlives the shell.
func quiet(command string) string { return command + " >/dev/null 2>&1 </dev/null &" }

// Attacks is the table.
var Attacks = []Attack{
	{Name: "program-from-tmpfs", FoundBy: "procs", Reasons: []string{"procs-unknown-executable"}, Detail: "/tmp/tamper-a",
		Commit: []string{"cp /usr/bin/sleep /tmp/tamper-a", quiet("/tmp/tamper-a 3600")}, Undo: []string{"rm -f /tmp/tamper-a"}},
	{Name: "deleted-program", FoundBy: "procs", Reasons: []string{"procs-deleted-executable"}, Detail: "/tmp/tamper-b",
		Commit: []string{"cp /usr/bin/sleep /tmp/tamper-b", quiet("/tmp/tamper-b 3600"), "sleep 0.2", "rm /tmp/tamper-b"}},
	{Name: "program-that-ran-and-is-gone", FoundBy: "ima", Reasons: []string{"ima-unknown"}, Detail: "/run/tamper-c",
		Commit: []string{"cp /usr/bin/true /run/tamper-c", "/run/tamper-c", "rm /run/tamper-c"}},
	{Name: "preloaded-library", FoundBy: "procs", Reasons: []string{"procs-unknown-executable"}, Detail: "/run/tamper-d.so",
		Commit: []string{"cp /usr/lib/x86_64-linux-gnu/libm.so.6 /run/tamper-d.so", "LD_PRELOAD=/run/tamper-d.so " + quiet("/usr/bin/sleep 3600")},
		Undo:   []string{"rm -f /run/tamper-d.so"}},
	{Name: "bind-mounted-program", FoundBy: "procs", Reasons: []string{"procs-mount-over-image"}, Detail: "/usr/bin/stat",
		Commit: []string{"cp /usr/bin/stat /run/tamper-e", "mount --bind /run/tamper-e /usr/bin/stat"}, Undo: []string{"umount /usr/bin/stat"}},
	{Name: "mount-over-configuration", FoundBy: "procs", Reasons: []string{"procs-mount-over-image"}, Detail: "/etc/sysctl.d",
		Commit: []string{"mount -t tmpfs none /etc/sysctl.d"}, Undo: []string{"umount /etc/sysctl.d"}},
	{Name: "account-added", FoundBy: "files", Reasons: []string{"files-changed"}, Detail: "/etc/passwd",
		Commit: []string{"echo 'evil:x:0:0::/root:/bin/sh' >> /etc/passwd"}},
	{Name: "unit-added", FoundBy: "files", Reasons: []string{"files-added"}, Detail: "/etc/systemd/system/tamper.service",
		Commit: []string{"echo '[Service]' > /etc/systemd/system/tamper.service"}},
	{Name: "program-waits-in-usr", FoundBy: "files", Reasons: []string{"files-added"}, Detail: "/usr/bin/tamper",
		Commit: []string{"cp /usr/bin/true /usr/bin/tamper"}},
	{Name: "file-removed", FoundBy: "files", Reasons: []string{"files-removed"}, Detail: "/etc/systemd",
		Commit: []string{"rm -r /etc/systemd/journald.conf.d"}},
	{Name: "ebpf-socket-filter", FoundBy: "trace", Reasons: []string{"trace-bpf"}, Detail: "type 1",
		Commit: []string{quiet(hpcLab + " bpf 3600s")}},
	{Name: "kprobe", FoundBy: "boot", Reasons: []string{"boot-traced"}, Detail: "tamper",
		Commit: []string{"mkdir -p /run/tamper-t", "mount -t tracefs none /run/tamper-t", "echo 'p:tamper do_sys_openat2' > /run/tamper-t/kprobe_events"},
		Undo:   []string{"echo > /run/tamper-t/kprobe_events", "umount /run/tamper-t"}},
	{Name: "unlisted-module", FoundBy: "modules", Reasons: []string{"modules-unexpected"}, Detail: "dummy",
		Commit: []string{"modprobe dummy"}, Undo: []string{"rmmod dummy"}},
	{Name: "process-namespace-by-hand", FoundBy: "container", Reasons: []string{"container-unknown"}, Detail: "sleep",
		Commit: []string{quiet("unshare --pid --fork /usr/bin/sleep 3600")}},
	{Name: "noise-overwritten", FoundBy: "noise", Reasons: []string{"noise-changed"}, Detail: "not resident",
		Commit: []string{wipeNoise}},
	{Name: "read-only-data-changed", FoundBy: "krodata", Reasons: []string{"krodata-changed"}, Detail: "+0x700000..+0x704000",
		Host: func(ctx context.Context, l *lab.Lab) error {
			return poke(ctx, l, "Kernel rodata", 0x700123, []byte{0x5a})
		}},
	{Name: "interrupt-gate-changed", FoundBy: "krodata", Reasons: []string{"krodata-idt"}, Detail: "vectors [22]", Host: changeGate},
	{Name: "clock-set-back", FoundBy: "time", Reasons: []string{"time-clock-set"}, Detail: "-1h", Uptime: settled,
		Commit: []string{"date -s '1 hour ago'"}},
	{Name: "device-plugged-in", FoundBy: "uevent", Reasons: []string{"uevent-added"}, Detail: "pci of /devices/", Uptime: settled,
		Host: func(ctx context.Context, l *lab.Lab) error { return l.PC().AddNIC(ctx, "52:54:00:de:ad:02") }},
}

// settled is when a PC counts as started: attestserver/expect has 180 s.
const settled = 185 * time.Second

// wipeNoise writes zeros over the agent's largest mapping outside of its heap:
// the noise. Root can write to any process.
const wipeNoise = `pid=$(pgrep -o hpc-agent)
best=0
while read -r span perms rest; do
  [ "$perms" = rw-p ] || continue
  from=$((0x${span%-*})); size=$((0x${span#*-} - from))
  if [ $size -eq 16777216 ]; then best=$from; fi
done < /proc/$pid/maps
[ $best -ne 0 ]
dd if=/dev/zero of=/proc/$pid/mem bs=65536 seek=$((best / 65536)) count=256 conv=notrunc 2>/dev/null || dd if=/dev/zero of=/proc/$pid/mem bs=4096 seek=$((best / 4096)) count=4096 conv=notrunc`

// poke changes bytes of a part of the kernel image, by its name in /proc/iomem.
func poke(ctx context.Context, l *lab.Lab, part string, offset uint64, data []byte) error {
	r, err := l.Exec(ctx, "/bin/cat", "/proc/iomem")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(r.Stdout)) {
		var from, to uint64
		if strings.HasSuffix(strings.TrimSpace(line), ": "+part) {
			if _, err := fmt.Sscanf(strings.TrimSpace(line), "%x-%x", &from, &to); err != nil || from+offset > to {
				return fmt.Errorf("iomem: %q: %w", line, err)
			}
			return l.PC().WritePhysical(ctx, from+offset, data)
		}
	}
	return fmt.Errorf("iomem has no %s", part)
}

// changeGate changes the handler of vector 22, which processors reserve and
// never use. Where the table lies is in the reference that attestd took.
func changeGate(ctx context.Context, l *lab.Lab) error {
	var ref struct {
		IDTAt uint64 `json:"idt_at"`
		IDT   []byte `json:"idt"`
	}
	head, err := l.Reference("krodata", 16<<10)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(head, &ref); err != nil {
		return err
	}
	// The kernel image is mapped in one piece: virtual and physical addresses differ
	// by what /proc/iomem says of the text at its fixed place.
	const text = 0xffffffff81000000
	r, err := l.Exec(ctx, "/bin/cat", "/proc/iomem")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(r.Stdout)) {
		var from, to uint64
		if !strings.HasSuffix(strings.TrimSpace(line), ": Kernel code") {
			continue
		}
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "%x-%x", &from, &to); err != nil {
			return err
		}
		return l.PC().WritePhysical(ctx, from+ref.IDTAt-text+22*16, []byte{ref.IDT[22*16] ^ 1})
	}
	return fmt.Errorf("iomem has no kernel code")
}
