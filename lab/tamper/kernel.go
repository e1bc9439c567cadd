package tamper

import (
	"context"

	"portcullis/lab"
)

// kernel are attacks on the kernel.
var kernel = []Attack{
	{Name: "ebpf-socket-filter", FoundBy: "trace", Reasons: []string{"trace-bpf"}, Detail: "type 1",
		Commit: []string{quiet(hpcLab + " bpf 3600s")}},
	{Name: "kprobe", FoundBy: "boot", Reasons: []string{"boot-traced"}, Detail: "do_sys_openat2",
		Commit: []string{tracefs, "echo 'p:tamper do_sys_openat2' > /run/tamper-t/kprobe_events"}, Undo: []string{"echo > /run/tamper-t/kprobe_events"}},
	{Name: "uprobe", FoundBy: "boot", Reasons: []string{"boot-traced"}, Detail: "/usr/bin/bash",
		Commit: []string{tracefs, "echo 'p:tamperu /usr/bin/bash:0x30000' > /run/tamper-t/uprobe_events"}, Undo: []string{"echo > /run/tamper-t/uprobe_events"}},
	{Name: "tracepoint", FoundBy: "boot", Reasons: []string{"boot-traced"}, Detail: "sched_process_exec",
		Commit: []string{tracefs, "echo sched:sched_process_exec > /run/tamper-t/set_event"}, Undo: []string{"echo > /run/tamper-t/set_event"}},
	{Name: "tracepoint-in-an-instance", Stage: Settled, FoundBy: "boot", Reasons: []string{"boot-traced"}, Detail: "sched_process_fork",
		Commit: []string{tracefs, "mkdir /run/tamper-t/instances/tamper", "echo sched:sched_process_fork > " + instance}, Undo: []string{"echo > " + instance}},
	// Not modprobe's: other attacks have the kernel load modules.
	{Name: "helper-of-the-kernel-exchanged", Stage: Settled, FoundBy: "boot", Reasons: []string{"boot-helper"}, Detail: "poweroff_cmd",
		Commit: []string{"echo /run/tamper-p > /proc/sys/kernel/poweroff_cmd"}, Undo: []string{"echo /sbin/poweroff > /proc/sys/kernel/poweroff_cmd"}},
	{Name: "core-dumps-led-to-a-program", Stage: Settled, FoundBy: "boot", Reasons: []string{"boot-helper"}, Detail: "core_pattern",
		Commit: []string{"cat /proc/sys/kernel/core_pattern > /run/tamper-q", "echo '|/usr/bin/sh /run/tamper-r' > /proc/sys/kernel/core_pattern"},
		Undo:   []string{"cat /run/tamper-q > /proc/sys/kernel/core_pattern"}},
	{Name: "unlisted-module", FoundBy: "modules", Reasons: []string{"modules-unexpected"}, Detail: "dummy",
		Commit: []string{"modprobe dummy"}},
	{Name: "hidden-module", Stage: Settled, FoundBy: "modules", Reasons: []string{"modules-hidden"}, Detail: "dummy",
		Commit: []string{"modprobe dummy"}, Host: hideModule("dummy"), Unhost: showModule},
	{Name: "unsigned-module", Refusal: "key was rejected",
		Commit: []string{tool("module /usr/bin/true")}},
	{Name: "kernel-memory-by-dev-mem", Refusal: "permi", Commit: []string{tool("devmem")}},
	{Name: "processor-ports", Refusal: "permi", Commit: []string{tool("ioport")}},
	{Name: "processor-registers", Refusal: "no such file", Commit: []string{tool("msr")}},
	{Name: "kexec", Refusal: "permi", Commit: []string{tool("kexec")}},
	{Name: "lockdown-lifted", Refusal: "permi|i/o error",
		Commit: []string{"echo none > /sys/kernel/security/lockdown"}},
	{Name: "noise-overwritten", FoundBy: "noise", Reasons: []string{"noise-changed"}, Detail: "not resident",
		Commit: []string{wipeNoise}},
	{Name: "read-only-data-changed", FoundBy: "krodata", Reasons: []string{"krodata-changed"}, Detail: "+0x700000..+0x704000",
		Host: func(ctx context.Context, l *lab.Lab) error {
			return poke(ctx, l, "Kernel rodata", 0x700123, []byte{0x5a})
		}},
	{Name: "kernel-text-patched", FoundBy: "ktext", Reasons: []string{"ktext-changed"}, Detail: "differs from the reference", Host: patchText},
	{Name: "module-text-patched", FoundBy: "modules", Reasons: []string{"modules-text"}, Detail: "virtio_net: .text", Host: patchModule},
	{Name: "interrupt-gate-changed", FoundBy: "krodata", Reasons: []string{"krodata-idt"}, Detail: "vectors [22]", Host: changeGate},
	{Name: "clock-set-back", Stage: Settled, FoundBy: "time", Reasons: []string{"time-clock-set"}, Detail: "-1h",
		Commit: []string{"date -s '90 minutes ago'"}},
	{Name: "clock-set-forward", Stage: Alone, FoundBy: "time", Reasons: []string{"time-clock-set"}, Detail: "2h",
		Commit: []string{"date -s '150 minutes'"}},
}

// instance is what an instance of the tracer traces.
const instance = "/run/tamper-t/instances/tamper/set_event"

// tracefs mounts it where nobody looks.
const tracefs = "mkdir -p /run/tamper-t; mountpoint -q /run/tamper-t || mount -t tracefs none /run/tamper-t"

// network are attacks on the PC's ways out.
var network = []Attack{
	{Name: "sniffing-socket", FoundBy: "net", Reasons: []string{"net-sniffer"}, Detail: "packet socket", Commit: []string{tool("sniff")}},
	{Name: "raw-socket-for-tcp", FoundBy: "net", Reasons: []string{"net-sniffer"}, Detail: "raw sockets of ip for protocol 6", Commit: []string{tool("sniffraw")}},
	{Name: "promiscuous-card", FoundBy: "net", Reasons: []string{"net-promiscuous"}, Detail: "eth0",
		Commit: []string{"ip link set eth0 promisc on"}, Undo: []string{"ip link set eth0 promisc off"}},
	{Name: "bridge-of-ones-own", FoundBy: "net", Reasons: []string{"net-unexpected-interface"}, Detail: "evil0",
		Commit: []string{"ip link add evil0 type bridge"}, Undo: []string{"ip link del evil0"}},
	{Name: "another-route", FoundBy: "net", Reasons: []string{"net-route"}, Detail: "203.0.113.0/24 by 198.51.100.1",
		Commit: []string{"ip link add evil1 type bridge", "ip addr add 198.51.100.2/24 dev evil1", "ip link set evil1 up",
			"ip route add 203.0.113.0/24 via 198.51.100.1 dev evil1 onlink"}, Undo: []string{"ip link del evil1"}},
}
