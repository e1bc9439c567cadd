package expect_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/agent/probe"
	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

var allOps = []string{protocol.OpBoot, protocol.OpBlock, protocol.OpProcs, protocol.OpPmem, protocol.OpModules, protocol.OpNet,
	protocol.OpHw, protocol.OpKtext, protocol.OpTpm, protocol.OpTsm, protocol.OpKrodata, protocol.OpTrace, protocol.OpUevent, protocol.OpFiles,
	protocol.OpTime, protocol.OpNoise, protocol.OpContainer, protocol.OpIma}

func TestHonestMachine_NoFinding(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	for range 3 {
		m.uptime += time.Second
		for _, op := range allOps {
			if f := m.judge(op); len(f) > 0 {
				t.Errorf("%s: %+v", op, f)
			}
		}
	}
}

// Each attack must be found by the named op, with a reason and by name.
func TestAttacks(t *testing.T) {
	for _, a := range []struct {
		name, op, reason, detail string
		do                       func(*machine)
	}{
		{"a program is started from a tmpfs", protocol.OpProcs, expect.ReasonUnknownExecutable, "/tmp/evil on tmpfs, run by process 666 (evil)", func(m *machine) {
			m.mapped(666, "evil", "/tmp/evil", []byte("evil"), probe.FileStat{Size: 4, Inode: 5, FSType: "tmpfs"}, "r-xp")
		}},
		{"a program is started and deleted", protocol.OpProcs, expect.ReasonDeletedExecutable, "/usr/bin/dockerd", func(m *machine) {
			m.mapped(666, "dockerd", "/usr/bin/dockerd (deleted)", m.files["/usr/bin/dockerd"], probe.FileStat{Size: 4, FSType: "overlay"}, "r-xp")
		}},
		{"a program runs from a memfd", protocol.OpProcs, expect.ReasonDeletedExecutable, "/memfd:kit", func(m *machine) {
			m.mapped(666, "kit", "/memfd:kit (deleted)", []byte("evil"), probe.FileStat{Size: 4, FSType: "tmpfs"}, "r-xp")
		}},
		{"a bind mount replaces a program, from a tmpfs", protocol.OpProcs, expect.ReasonForeignFilesystem, "/usr/bin/dockerd on tmpfs", func(m *machine) {
			m.mapped(300, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"], probe.FileStat{Size: 1_000_001, CTime: m.made.UnixNano(),
				Inode: m.number("/usr/bin/dockerd"), FSType: "tmpfs"}, "r-xp")
		}},
		{"a bind mount replaces a program, from the overlay itself", protocol.OpProcs, expect.ReasonChangedFile, "/usr/bin/dockerd", func(m *machine) {
			m.mapped(300, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"], probe.FileStat{Size: 1_000_001, CTime: m.made.UnixNano(),
				Inode: 4711, FSType: "overlay"}, "r-xp")
		}},
		{"a program is written to and copied up", protocol.OpProcs, expect.ReasonChangedFile, "/usr/bin/dockerd", func(m *machine) {
			m.mapped(300, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"], probe.FileStat{Size: 1_000_001,
				CTime: m.made.Add(time.Hour).UnixNano(), Inode: m.number("/usr/bin/dockerd"), FSType: "overlay"}, "r-xp")
		}},
		{"a mount covers a program that nobody runs", protocol.OpProcs, expect.ReasonMount, "tmpfs of device 0:24 is mounted on /usr/bin/dockerd", func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n9 0 0:24 /evil /usr/bin/dockerd rw - tmpfs none rw\n")
		}},
		{"a mount covers a file of /etc", protocol.OpProcs, expect.ReasonMount, "/etc/passwd", func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n9 0 0:24 /evil /etc/passwd rw - tmpfs none rw\n")
		}},
		{"an empty directory covers a process", protocol.OpProcs, expect.ReasonMount, "/proc/300", func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n8 0 0:21 / /proc rw - proc proc rw\n9 8 0:24 /empty /proc/300 rw - tmpfs none rw\n")
		}},
		{"a part of proc covers another", protocol.OpProcs, expect.ReasonMount, "/proc/modules", func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n8 0 0:21 / /proc rw - proc proc rw\n9 8 0:21 /version /proc/modules rw - proc proc rw\n")
		}},
		{"another file system is mounted on the modules of sysfs", protocol.OpProcs, expect.ReasonMount, "/sys/module", func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n8 0 0:22 / /sys rw - sysfs sysfs rw\n9 8 0:24 / /sys/module rw - tmpfs none rw\n")
		}},
		{"the root is another one", protocol.OpProcs, expect.ReasonNoRoot, "ext4", func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
		}},
		{"code is injected into anonymous memory", protocol.OpProcs, expect.ReasonAnonymousCode, "process 300 (dockerd): 8192 bytes at 0x7f0000000000", func(m *machine) {
			m.append("7f0000000000-7f0000002000 rwxp 00000000 00:00 0 \n", "proc/300/maps")
		}},
		{"a program's text is made writable", protocol.OpProcs, expect.ReasonWritableExecutable, "/usr/bin/dockerd", func(m *machine) {
			m.mapped(300, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"], probe.FileStat{Size: 1_000_001, CTime: m.made.UnixNano(),
				Inode: m.number("/usr/bin/dockerd"), FSType: "overlay"}, "rwxp")
		}},
		{"a process hides behind its ended first thread", protocol.OpProcs, expect.ReasonUnknownExecutable, "/tmp/evil", func(m *machine) {
			m.mapped(666, "evil", "/tmp/evil", []byte("evil"), probe.FileStat{Size: 4, FSType: "tmpfs"}, "r-xp")
			m.write([]byte("666 (evil) Z 1 0 0 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 766\n"), "proc/666/stat")
			m.check(os.MkdirAll(m.path("proc/666/task"), 0o755))
			for _, f := range []string{"maps", "exe"} {
				m.check(os.MkdirAll(m.path("proc/666/task/667"), 0o755))
				m.check(os.Rename(m.path("proc/666", f), m.path("proc/666/task/667", f)))
			}
			m.write(nil, "proc/666/maps")
			m.stats["666/task/667/map_files/400000-401000"] = probe.FileStat{Size: 4, FSType: "tmpfs"}
		}},
		{"a process without a program", protocol.OpProcs, expect.ReasonUnknownProcess, "process 666 (ghost)", func(m *machine) {
			m.write([]byte("666 (ghost) S 1 0 0 0 -1 64 0 0 0 0 0 0 0 0 20 0 1 0 766\n"), "proc/666/stat")
			m.write(nil, "proc/666/maps")
			m.link("user:[4026531837]", "proc/666/ns/user")
			m.power(666, 0, 0, 0, 0, 0)
		}},
		{"code is patched in memory", protocol.OpPmem, expect.ReasonChangedCode, "process 300: the page at", func(m *machine) {
			patched := bytes.Clone(m.files["/usr/bin/dockerd"])
			for i := 0; i < len(patched); i += protocol.PageSize {
				patched[i] ^= 1
			}
			m.process(300, "dockerd", "/usr/bin/dockerd", patched)
		}},
		{"a debugger writes one byte of code", protocol.OpPmem, expect.ReasonPatchedCode, "process 300: 1 pages of /usr/bin/dockerd are no longer the file's, the first at 0x5000", func(m *machine) {
			m.pagemap(300, 245, 5)
		}},
		{"a path that the agent reads is changed in its memory", protocol.OpPmem, expect.ReasonPatchedCode, "1 pages of /usr/lib/portcullis/hpc-agent are no longer the file's, the first at 0x4000", func(m *machine) {
			m.agent(9, 3)
		}},
		{"a name tries to write to the operator's terminal", protocol.OpPmem, expect.ReasonUnknownCode, "/tmp/?[2Jevil?", func(m *machine) {
			m.mapped(666, "evil", "/tmp/\x1b[2Jevil\u0085", []byte("evil"), probe.FileStat{Size: 4, Inode: 5, FSType: "tmpfs"}, "r-xp")
		}},
		{"memory of a foreign program", protocol.OpPmem, expect.ReasonUnknownCode, "/tmp/evil", func(m *machine) {
			m.mapped(666, "evil", "/tmp/evil", []byte("evil"), probe.FileStat{Size: 4, FSType: "tmpfs"}, "r-xp")
		}},
		{"a module is loaded", protocol.OpModules, expect.ReasonModule, "dummy", func(m *machine) {
			m.append("dummy 12288 0 - Live 0xffffffffc0100000\n", "proc/modules")
			m.module("dummy", bridgeID)
		}},
		{"another build of a module is loaded", protocol.OpModules, expect.ReasonModuleChanged, "bridge", func(m *machine) {
			m.module("bridge", "ff"+bridgeID[2:])
		}},
		{"an unsigned module is loaded", protocol.OpModules, expect.ReasonModuleTaint, "bridge: OE", func(m *machine) {
			m.write([]byte("bridge 300000 0 - Live 0xffffffffc0000000 (OE)\n"), "proc/modules")
		}},
		{"a module hides from /proc/modules", protocol.OpModules, expect.ReasonModuleHidden, "rootkit", func(m *machine) { m.module("rootkit", bridgeID) }},
		{"a second card is plugged in", protocol.OpNet, expect.ReasonSecondInterface, "eth1 at 0000:00:09.0", func(m *machine) {
			m.nic("eth1", "0000:00:09.0")
			m.links = append(m.links, protocol.Link{Name: "eth1", Index: 3, MAC: "52:54:00:00:00:02", Permanent: "52:54:00:00:00:02"})
		}},
		{"a dummy interface is added", protocol.OpNet, expect.ReasonInterface, `dummy0 of kind "dummy"`, func(m *machine) {
			m.links = append(m.links, protocol.Link{Name: "dummy0", Index: 3, Kind: "dummy"})
		}},
		{"a tunnel is named like Docker's bridge", protocol.OpNet, expect.ReasonInterface, "docker0", func(m *machine) {
			m.links = append(m.links, protocol.Link{Name: "docker0", Index: 3, Kind: "gre"})
		}},
		{"the boot interface is put into a bridge", protocol.OpNet, expect.ReasonEnslaved, "eth0 is part of interface 3", func(m *machine) { m.links[1].Master = 3 }},
		{"the MAC is changed", protocol.OpNet, expect.ReasonMAC, "eth0 uses 02:00", func(m *machine) { m.links[1].MAC = "02:00:00:00:00:09" }},
		{"the boot interface is moved away", protocol.OpNet, expect.ReasonNoInterface, testMAC, func(m *machine) { m.links = m.links[:1] }},
		{"another command line is booted", protocol.OpBoot, expect.ReasonCmdline, "init=/bin/sh", func(m *machine) {
			m.write([]byte(testCmdline+" init=/bin/sh\n"), "proc/cmdline")
		}},
		{"another kernel is booted", protocol.OpBoot, expect.ReasonKernel, "6.12.0-test", func(m *machine) { m.write([]byte("other"), "sys/kernel/notes") }},
		{"lockdown is off", protocol.OpBoot, expect.ReasonLockdown, "none", func(m *machine) { m.special["lockdown"] = "[none] integrity confidentiality\n" }},
		{"another kernel is loaded by kexec", protocol.OpBoot, expect.ReasonKexec, "kexec", func(m *machine) { m.write([]byte("1\n"), "sys/kernel/kexec_loaded") }},
		{"an unsigned module tainted the kernel", protocol.OpBoot, expect.ReasonTainted, "12288", func(m *machine) { m.write([]byte("12288\n"), "proc/sys/kernel/tainted") }},
		{"a kprobe is set", protocol.OpBoot, expect.ReasonTraced, "kprobe: p:kp do_sys_openat2", func(m *machine) { m.special["kprobe_events"] = "p:kp do_sys_openat2\n" }},
		{"tracepoints are switched on", protocol.OpBoot, expect.ReasonTraced, "event: sched:sched_switch", func(m *machine) { m.special["set_event"] = "sched:sched_switch\n" }},
		{"tracepoints are switched on in an instance", protocol.OpBoot, expect.ReasonTraced, "event of instances/evil: sched:sched_switch", func(m *machine) {
			m.special["instances/evil/set_event"], m.special["instances/evil/current_tracer"] = "sched:sched_switch\n", "nop\n"
		}},
		{"a tracer runs in an instance", protocol.OpBoot, expect.ReasonTraced, "tracer of instances/evil: function_graph", func(m *machine) {
			m.special["instances/evil/current_tracer"] = "function_graph\n"
		}},
		{"tracepoints are switched on in the instance of a driver", protocol.OpBoot, expect.ReasonTraced, "event of instances/qla2xxx: sched:sched_switch", func(m *machine) {
			m.special["instances/qla2xxx/set_event"] = "qla:ql_dbg_log\nsched:sched_switch\n"
		}},
		{"a core dump starts a program of the attacker", protocol.OpBoot, expect.ReasonHelper, "core_pattern is \"|/run/evil %p\"", func(m *machine) {
			m.write([]byte("|/run/evil %p\n"), "proc/sys/kernel/core_pattern")
		}},
		{"a wanted module starts a program of the attacker", protocol.OpBoot, expect.ReasonHelper, "modprobe is \"/usr/bin/dockerd\"", func(m *machine) {
			m.write([]byte("/usr/bin/dockerd\n"), "proc/sys/kernel/modprobe")
		}},
		{"a power-off starts a program of the attacker", protocol.OpBoot, expect.ReasonHelper, "poweroff_cmd is", func(m *machine) {
			m.write([]byte("/run/evil\n"), "proc/sys/kernel/poweroff_cmd")
		}},
		{"the function tracer runs", protocol.OpBoot, expect.ReasonTraced, "tracer: function", func(m *machine) { m.special["current_tracer"] = "function\n" }},
		{"blocks of the root image are changed", protocol.OpBlock, expect.ReasonBlock, "random blocks", func(m *machine) {
			b, err := os.ReadFile(m.path("dev/loop0"))
			m.check(err)
			for i := 0; i < len(b); i += 4096 {
				b[i] ^= 1
			}
			m.write(b, "dev/loop0")
		}},
		{"the verity table is exchanged", protocol.OpBlock, expect.ReasonVerity, "root hash cc", func(m *machine) { m.verity.RootHash = "cc" }},
		{"verity looks at each block only once", protocol.OpBlock, expect.ReasonVerity, "check_at_most_once", func(m *machine) { m.verity.Options = "1 check_at_most_once" }},
		{"a target is put before verity", protocol.OpBlock, expect.ReasonVerity, "2 targets", func(m *machine) { m.verity.Targets = 2 }},
		{"verity has met corruption", protocol.OpBlock, expect.ReasonVerity, `"C"`, func(m *machine) { m.verity.Status = "C" }},
		{"verity lies on another device", protocol.OpBlock, expect.ReasonVerity, "8:0", func(m *machine) { m.verity.DataDev = "8:0" }},
		{"a PCI card is plugged in", protocol.OpHw, expect.ReasonHwAdded, "pci 0000:00:09.0: 0x8086", func(m *machine) {
			m.write([]byte("0x8086\n"), "sys/bus/pci/devices/0000:00:09.0/vendor")
		}},
		{"a PCI card is exchanged", protocol.OpHw, expect.ReasonHwChanged, "pci 0000:00:03.0", func(m *machine) {
			m.write([]byte("0x8086\n"), "sys/bus/pci/devices/0000:00:03.0/vendor")
		}},
		{"a PCI card is taken out", protocol.OpHw, expect.ReasonHwRemoved, "pci 0000:00:03.0", func(m *machine) {
			m.check(os.RemoveAll(m.path("sys/bus/pci/devices/0000:00:03.0")))
		}},
		{"memory is taken out", protocol.OpHw, expect.ReasonHwMemory, "500000 KiB", func(m *machine) { m.write([]byte("MemTotal: 500000 kB\n"), "proc/meminfo") }},
		{"a USB stick is plugged in long after boot", protocol.OpHw, expect.ReasonHwAdded, "usb 1-1", func(m *machine) {
			m.uptime = time.Hour
			m.write([]byte("0781\n"), "sys/bus/usb/devices/1-1/idVendor")
		}},
		{"a kernel function is hooked", protocol.OpKtext, expect.ReasonKtext, "differs from the reference at +0x4000..+0x8000", func(m *machine) {
			hooked := bytes.Clone(m.text)
			hooked[0x4123] ^= 0xff
			m.kernel(hooked)
		}},
		{"a boot-time site is patched later", protocol.OpKtext, expect.ReasonKtext, "+0x0..+0x4000", func(m *machine) {
			hooked := bytes.Clone(m.text)
			hooked[202] ^= 0xff
			m.kernel(hooked)
		}},
		{"a hook hides in a jump label", protocol.OpKtext, expect.ReasonKtext, "+0x0..+0x4000", func(m *machine) {
			hooked := bytes.Clone(m.text)
			copy(hooked[100:], []byte{0xe9, 0x98, 0x01, 0, 0})
			m.kernel(hooked)
		}},
		{"a line is added to the accounts", protocol.OpFiles, expect.ReasonFilesChanged, "/etc/passwd", func(m *machine) {
			m.append("evil::0:0::/root:/bin/sh\n", "live/etc/passwd")
		}},
		{"a unit is put into place", protocol.OpFiles, expect.ReasonFilesAdded, "/etc/systemd/system/evil.service", func(m *machine) {
			m.write([]byte("[Service]\n"), "live/etc/systemd/system/evil.service")
		}},
		{"a key is put where a directory is expected", protocol.OpFiles, expect.ReasonFilesAdded, "/root/.ssh/authorized_keys", func(m *machine) {
			m.write([]byte("key"), "live/root/.ssh/authorized_keys")
		}},
		{"a program's copy waits in /usr", protocol.OpFiles, expect.ReasonFilesAdded, "/usr/bin/kit", func(m *machine) { m.write([]byte("x"), "live/usr/bin/kit") }},
		{"a program gets another mode", protocol.OpFiles, expect.ReasonFilesChanged, "/usr/bin/dockerd: mode 100777", func(m *machine) {
			m.check(os.Chmod(m.path("live/usr/bin/dockerd"), 0o777))
			m.check(os.Chtimes(m.path("live/usr/bin/dockerd"), time.Now(), time.Now()))
		}},
		{"a file is changed and its time put back", protocol.OpFiles, expect.ReasonFilesRemoved, "/etc: entries", func(m *machine) {
			m.append("x", "live/etc/passwd")
			m.check(os.Chtimes(m.path("live/etc/passwd"), m.made, m.made))
		}},
		{"a program is changed and its time put back", protocol.OpFiles, expect.ReasonFilesContent, "/usr/bin/dockerd: the", func(m *machine) {
			m.wantsNone(protocol.OpFiles) // the image's tree is read
			b := bytes.Clone(m.files["/usr/bin/dockerd"])
			for i := 0; i < len(b); i += protocol.LeafSize {
				b[i] ^= 1
			}
			m.write(b, "live/usr/bin/dockerd")
			m.check(os.Chtimes(m.path("live/usr/bin/dockerd"), m.made, m.made))
		}},
		{"a file is taken away", protocol.OpFiles, expect.ReasonFilesRemoved, "/usr/lib: entries", func(m *machine) { m.check(os.Remove(m.path("live/usr/lib/libc.so.6"))) }},
		{"a directory is taken away", protocol.OpFiles, expect.ReasonFilesRemoved, "the directory /usr/lib/systemd is gone", func(m *machine) {
			m.check(os.RemoveAll(m.path("live/usr/lib/systemd")))
		}},
		{"the link of the locale leads elsewhere", protocol.OpFiles, expect.ReasonFilesAdded, "/etc/vconsole.conf", func(m *machine) {
			m.link("/run/evil", "live/etc/vconsole.conf")
		}},
		{"a mount covers the configuration", protocol.OpProcs, expect.ReasonMount, "tmpfs of device 0:24 is mounted on /etc", func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n9 0 0:24 / /etc rw - tmpfs none rw\n")
		}},
		{"the list of measurements is another", protocol.OpIma, expect.ReasonImaChain, "not those that were told before", func(m *machine) {
			if f := m.judge(protocol.OpIma); len(f) > 0 {
				m.t.Fatal(f)
			}
			m.special[imaList] = ""
			for range 5 {
				m.measured("/usr/bin/dockerd", m.files["/usr/bin/dockerd"])
			}
		}},
		{"nothing is measured", protocol.OpIma, expect.ReasonImaOff, "measures nothing", func(m *machine) {
			m.special[imaList] = ""
			m.measured("boot_aggregate", nil)
		}},
		{"a container of an unknown image runs", protocol.OpContainer, expect.ReasonContainerUnapproved, `runs "/task -x"`, func(m *machine) {
			other := sha256.Sum256([]byte("evil"))
			name := hex.EncodeToString(other[:])
			m.container(name, "{}")
			m.write([]byte("evil"), "proc/1/root/var/lib/docker/image/overlay2/imagedb/content/sha256", name)
		}},
		{"an approved image's record is exchanged", protocol.OpContainer, expect.ReasonContainerImage, "another digest", func(m *machine) {
			m.container(testTask, "{}")
			m.write([]byte("evil"), "proc/1/root/var/lib/docker/image/overlay2/imagedb/content/sha256", testTask)
		}},
		{"an approved container is privileged", protocol.OpContainer, expect.ReasonContainerPrivileged, "pid=host, privileged", func(m *machine) {
			m.container(testTask, `{"Privileged":true,"PidMode":"host"}`)
		}},
		{"a container may use a device and a capability", protocol.OpContainer, expect.ReasonContainerPrivileged, "capability SYS_ADMIN, devices", func(m *machine) {
			m.container(testTask, `{"CapAdd":["SYS_ADMIN"],"Devices":[{}]}`)
		}},
		{"a container is made by hand", protocol.OpContainer, expect.ReasonContainerUnknown, "process 300 (dockerd)", func(m *machine) {
			m.write([]byte("dockerd\n"), "proc/300/comm")
			m.link("pid:[4026532222]", "proc/300/ns/pid")
		}},
		{"a control group is called like a container", protocol.OpContainer, expect.ReasonContainerUnknown, "not in the runtime's records", func(m *machine) {
			m.write([]byte("0::/system.slice/docker-"+testID+".scope\n"), "proc/300/cgroup")
		}},
		{"a debugger holds a process", protocol.OpProcs, expect.ReasonTracedProcess, "process 300 (dockerd) is debugged by process 77", func(m *machine) {
			m.write([]byte("Name:\tdockerd\nTracerPid:\t77\n"), "proc/300/status")
		}},
		{"a second agent runs", protocol.OpProcs, expect.ReasonSecondAgent, "2 processes", func(m *machine) {
			for _, pid := range []int{400, 401} {
				m.mapped(pid, "hpc-agent", "/usr/lib/portcullis/hpc-agent", []byte("x"), probe.FileStat{Size: 1}, "r-xp")
			}
		}},
		{"the card receives every frame", protocol.OpNet, expect.ReasonPromiscuous, "eth0", func(m *machine) { m.links[1].Promisc = true }},
		{"a packet socket sees every frame", protocol.OpNet, expect.ReasonSniffer, "1 packet sockets", func(m *machine) {
			m.write([]byte("sk RefCnt Type Proto\n0000000060afc9ca 3 3 0003 2 1 0 0 1025\n"), "proc/net/packet")
		}},
		{"a raw socket sees every segment of TCP", protocol.OpNet, expect.ReasonSniffer, "2 raw sockets of ip for protocol 6", func(m *machine) {
			m.write([]byte(rawHead+"    6: 00000000:0006 00000000:0000 07\n    6: 0100007F:0006 00000000:0000 07\n"), "proc/net/raw")
		}},
		{"a raw socket of IPv6 sees every datagram", protocol.OpNet, expect.ReasonSniffer, "1 raw sockets of ip6 for protocol 17", func(m *machine) {
			m.write([]byte(rawHead+"   17: 00000000000000000000000000000000:0011 00000000000000000000000000000000:0000 07\n"), "proc/net/raw6")
		}},
		{"ICMP of the other family is nobody's", protocol.OpNet, expect.ReasonSniffer, "1 raw sockets of ip for protocol 58", func(m *machine) {
			m.write([]byte(rawHead+"   58: 00000000:003A 00000000:0000 07\n"), "proc/net/raw")
		}},
		{"packets leave by another link", protocol.OpNet, expect.ReasonRoute, "0.0.0.0/0 by 172.17.0.5 over docker0", func(m *machine) {
			m.append("docker0\t00000000\t050011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "proc/net/route")
		}},
		{"IPv6 packets leave by another link", protocol.OpNet, expect.ReasonRoute, "::/0 by fe80::1 over docker0", func(m *machine) {
			m.write([]byte("00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003  docker0\n"), "proc/net/ipv6_route")
		}},
		{"a rule sends packets to another routing table", protocol.OpNet, expect.ReasonRoute, "ip rule 100", func(m *machine) { m.rules = []string{"ip rule 100: from all lookup 100"} }},
		{"a table of the packet filter catches packets", protocol.OpNet, expect.ReasonFilter, "table inet kit with 1 rules", func(m *machine) {
			m.table(1, "kit")
			m.chain(1, "kit", "out", 3, -300)
			m.rule(1, "kit", "out", "redir", "\x01")
		}},
		{"packets at the card are caught", protocol.OpNet, expect.ReasonFilter, "table netdev kit", func(m *machine) { m.table(5, "kit") }},
		{"a chain is put before Docker's", protocol.OpNet, expect.ReasonFilter, "chain kit of table ip nat at hook 3, priority -300", func(m *machine) {
			m.chain(unix.AF_INET, "nat", "kit", 3, -300)
		}},
		{"a security module is taken out", protocol.OpBoot, expect.ReasonLSM, "lockdown is not among", func(m *machine) { m.special["lsm"] = "capability,yama" }},
		{"Secure Boot is switched off for the next boot", protocol.OpHw, expect.ReasonHwChanged, `efi SecureBoot is "0", was "1"`, func(m *machine) {
			m.special[secureBoot] = "\x06\x00\x00\x00\x00"
		}},
		{"the firmware's variables are hidden", protocol.OpHw, expect.ReasonHwRemoved, "efi SecureBoot: 1, while the session ran", func(m *machine) {
			delete(m.special, secureBoot)
		}},
		{"a radio is switched on", protocol.OpNet, expect.ReasonRadio, "ieee80211 phy0", func(m *machine) { m.check(os.MkdirAll(m.path("sys/class/ieee80211/phy0"), 0o755)) }},
		{"the table of system calls is changed", protocol.OpKrodata, expect.ReasonKrodata, "+0x14000..+0x18000", func(m *machine) {
			b := m.live()
			b[5*protocol.KtextGranule+100] ^= 1
			m.kernelImage(m.text, b)
		}},
		{"a sealed pointer is changed", protocol.OpKrodata, expect.ReasonKrodataSealed, "+0x54000..+0x58000", func(m *machine) {
			for range 2 { // which pieces there are, and what they hold
				if f := m.judge(protocol.OpKrodata); len(f) > 0 {
					m.t.Fatal(f)
				}
			}
			b := m.live()
			b[21*protocol.KtextGranule+64] ^= 1
			m.kernelImage(m.text, b)
		}},
		{"an interrupt handler is exchanged", protocol.OpKrodata, expect.ReasonIDT, "vectors [14]", func(m *machine) {
			binary.LittleEndian.PutUint16(m.idt[14*16:], 0x4444)
			m.kernel(m.text)
		}},
		{"an eBPF program traces the kernel", protocol.OpTrace, expect.ReasonBPF, "program 99 of type 2", func(m *machine) {
			m.bpf = append(m.bpf, protocol.BPFObject{Kind: protocol.BPFProgram, ID: 99, Type: 2, Name: "spy"})
		}},
		{"an eBPF link attaches to a tracepoint", protocol.OpTrace, expect.ReasonBPF, "link 3 of type 2", func(m *machine) {
			m.bpf = append(m.bpf, protocol.BPFObject{Kind: protocol.BPFLink, ID: 3, Type: 2, Program: 99})
		}},
		{"an eBPF ring buffer waits for events", protocol.OpTrace, expect.ReasonBPF, "map 7 of type 27", func(m *machine) {
			m.bpf = append(m.bpf, protocol.BPFObject{Kind: protocol.BPFMap, ID: 7, Type: 27})
		}},
		{"a key is added that the kernel believes", protocol.OpTrace, expect.ReasonKeyAdded, ".builtin_trusted_keys: asymmetric;Evil", func(m *machine) {
			m.keys[0x1405b58f] = append(m.keys[0x1405b58f], "asymmetric;Evil")
		}},
		{"a key is taken away", protocol.OpTrace, expect.ReasonKeyRemoved, "autogenerated", func(m *machine) { m.keys[0x1405b58f] = nil }},
		{"an unsigned module taints the kernel", protocol.OpTrace, expect.ReasonTraceTainted, "tainted is 8192", func(m *machine) {
			m.write([]byte("8192\n"), "proc/sys/kernel/tainted")
		}},
		{"a USB stick is plugged in and out again between two questions", protocol.OpUevent, expect.ReasonUeventAdded, "usb of /devices/pci0000:00/0000:00:04.0/usb1/1-1", func(m *machine) {
			m.uptime = time.Hour
			m.uevent("add", "/devices/pci0000:00/0000:00:04.0/usb1/1-1", "usb")
			m.uevent("remove", "/devices/pci0000:00/0000:00:04.0/usb1/1-1", "usb")
		}},
		{"a disk is pulled out", protocol.OpUevent, expect.ReasonUeventRemoved, "block of /devices/pci0000:00/0000:00:05.0/block/vda", func(m *machine) {
			m.uptime = time.Hour
			m.uevent("remove", "/devices/pci0000:00/0000:00:05.0/block/vda", "block")
		}},
		{"an agent that is started anew forgets the events", protocol.OpUevent, expect.ReasonUeventChain, "not those that were told before", func(m *machine) {
			m.uevent("add", "/devices/virtual/net/veth0", "net")
			if f := m.judge(protocol.OpUevent); len(f) > 0 {
				m.t.Fatal(f)
			}
			m.startAgent()
			m.uptime += time.Second
			m.uevent("add", "/devices/virtual/net/veth1", "net")
		}},
		{"another mask is applied", protocol.OpKtext, expect.ReasonKtextMask, "mask", func(m *machine) {
			mask := m.mask()
			mask.Boot[0].Len = 4000
			b, err := mask.Encode()
			m.check(err)
			m.write(b, "ktext.mask")
			m.startAgent()
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			m := newMachine(t)
			m.enrol()
			a.do(m)
			list := m.judge(a.op)
			if a.reason == expect.ReasonFilesContent { // pieces are drawn: one question may miss all of one file's
				for range 5 {
					list = append(list, m.judge(a.op)...)
				}
			}
			m.wants(list, protocol.Fatal, a.reason, a.detail)
		})
	}
}

func (m *machine) append(s string, parts ...string) {
	m.t.Helper()
	b, err := os.ReadFile(m.path(parts...))
	m.check(err)
	m.write(append(b, s...), parts...)
}

// What an honest kernel and an honest machine do must stay without a finding.
func TestHonestChanges_NoFinding(t *testing.T) {
	for _, a := range []struct {
		name, op string
		do       func(*machine)
	}{
		{"a static key is switched", protocol.OpKtext, func(m *machine) {
			text := bytes.Clone(m.text)
			copy(text[100:], []byte{0xe9, 0x97, 0x01, 0, 0})
			m.kernel(text)
		}},
		{"iPXE names the initrd", protocol.OpBoot, func(m *machine) { m.write([]byte(testCmdline+" initrd=initrd\n"), "proc/cmdline") }},
		{"Docker makes its bridge and a container's link", protocol.OpNet, func(m *machine) {
			m.links = append(m.links, protocol.Link{Name: "docker0", Index: 3, Kind: "bridge"}, protocol.Link{Name: "veth0a1b2c3", Index: 4, Kind: "veth", Master: 3})
		}},
		{"memory differs by what the firmware reserves", protocol.OpHw, func(m *machine) { m.write([]byte("MemTotal: 999000 kB\n"), "proc/meminfo") }},
		{"systemd mounts its own", protocol.OpProcs, func(m *machine) {
			m.mounts("0 0 0:26 / / rw - overlay root rw\n5 0 0:30 / /run rw shared:3 - tmpfs tmpfs rw\n6 0 0:31 / /etc/machine-id ro - tmpfs tmpfs rw\n7 0 0:32 / /var/lib/docker rw - tmpfs t rw\n")
		}},
		{"a library is mapped by two programs", protocol.OpProcs, func(m *machine) {
			lib := m.files["/usr/lib/libc.so.6"]
			m.process(400, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"])
			m.append(fmt.Sprintf("7f0000000000-7f0000012000 r-xp 00000000 00:1a %d /usr/lib/libc.so.6\n", m.number("/usr/lib/libc.so.6")), "proc/400/maps")
			m.stats["400/map_files/7f0000000000-7f0000012000"] = probe.FileStat{Size: int64(len(lib)), CTime: m.made.UnixNano(),
				Inode: m.number("/usr/lib/libc.so.6"), FSType: "overlay"}
		}},
		{"a process ends while it is read", protocol.OpProcs, func(m *machine) {
			m.process(500, "sh", "/tmp/gone", []byte("x"))
			m.ends(500, 1)
		}},
		{"a process ends before its file is described", protocol.OpProcs, func(m *machine) {
			m.process(500, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"])
			m.check(os.RemoveAll(m.path("proc/300")))
			m.ends(500, 2)
		}},
		{"a process executes another program between walk and read", protocol.OpPmem, func(m *machine) {
			m.process(500, "sh", "/usr/bin/dockerd", bytes.Repeat([]byte("other"), 200_001))
			m.check(os.RemoveAll(m.path("proc/500/map_files")))
		}},
		{"a zombie waits for its parent", protocol.OpProcs, func(m *machine) {
			m.write([]byte("500 (sh) Z 1 0 0 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 766\n"), "proc/500/stat")
			m.write(nil, "proc/500/maps")
			m.check(os.MkdirAll(m.path("proc/500/task"), 0o755))
		}},
		{"systemd and Docker write what they write at boot", protocol.OpFiles, func(m *machine) {
			m.write([]byte("0123456789abcdef0123456789abcdef\n"), "live/etc/machine-id")
			m.link("default/keyboard", "live/etc/vconsole.conf")
			m.check(os.MkdirAll(m.path("live/etc/cni/net.d"), 0o700))
			m.check(os.MkdirAll(m.path("live/root/.ssh"), 0o700))
			m.check(os.MkdirAll(m.path("live/srv"), 0o755))
		}},
		{"systemd corrects the clock at boot", protocol.OpTime, func(m *machine) {
			if f := m.judge(protocol.OpTime); len(f) > 0 {
				m.t.Fatal(f)
			}
			m.step = time.Hour
		}},
		{"an approved container runs and writes", protocol.OpContainer, func(m *machine) {
			m.container(testTask, `{"NetworkMode":"bridge","SecurityOpt":null}`)
			m.write([]byte("x"), "proc/1/root/var/lib/docker/overlay2", testID, "diff/built")
		}},
		{"there is no memory for noise", protocol.OpNoise, func(m *machine) { m.write([]byte("MemAvailable: 2000 kB\n"), "proc/meminfo") }},
		{"Docker adds a rule and its counters count", protocol.OpNet, func(m *machine) {
			m.wantsNone(protocol.OpNet)
			m.rule(unix.AF_INET, "nat", "OUTPUT", "masq", "")
		}},
		{"it pings, is told of routers, and sends", protocol.OpNet, func(m *machine) {
			m.write([]byte(rawHead+"    1: 00000000:0001 00000000:0000 07\n  255: 00000000:00FF 00000000:0000 07\n"), "proc/net/raw")
			m.write([]byte(rawHead+"   58: 00000000000000000000000000000000:003A 00000000000000000000000000000000:0000 07\n"), "proc/net/raw6")
			m.write([]byte(rawHead+"    0: 00000000:0005 00000000:0000 07\n"), "proc/net/icmp")
		}},
		{"a task listens", protocol.OpNet, func(m *machine) {
			m.write([]byte("head\n 0: 0100007F:9683 00000000:0000 0A\n 1: 00000000:0016 00000000:0000 0A\n"), "proc/net/tcp")
		}},
		{"udev asks for all devices again", protocol.OpUevent, func(m *machine) {
			m.uptime = time.Hour
			m.uevent("add", "/devices/pci0000:00/0000:00:03.0", "pci", "SYNTH_UUID=0")
		}},
		{"a container gets a link and a loop device appears", protocol.OpUevent, func(m *machine) {
			m.uptime = time.Hour
			m.uevent("add", "/devices/virtual/net/veth0a1b2c3", "net")
			m.uevent("add", "/devices/virtual/block/loop1", "block")
			m.uevent("change", "/devices/pci0000:00/0000:00:05.0/block/sr0", "block")
		}},
		{"a driver traces into its own instance", protocol.OpBoot, func(m *machine) {
			m.special["instances/qla2xxx/set_event"], m.special["instances/qla2xxx/current_tracer"] = "qla:ql_dbg_log\n", "nop\n"
		}},
		{"a disk is found while the machine starts", protocol.OpUevent, func(m *machine) {
			m.uevent("add", "/devices/pci0000:00/0000:00:05.0/block/vda", "block")
		}},
		{"a container's device filter is loaded", protocol.OpTrace, func(m *machine) {
			m.bpf = append(m.bpf, protocol.BPFObject{Kind: protocol.BPFProgram, ID: 30, Type: 15}, protocol.BPFObject{Kind: protocol.BPFLink, ID: 1, Type: 3})
		}},
		{"a module is being loaded", protocol.OpModules, func(m *machine) {
			m.write([]byte("bridge 300000 0 - Loading 0xffffffffc0000000\n"), "proc/modules")
			m.check(os.RemoveAll(m.path("sys/module/bridge/notes")))
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			m := newMachine(t)
			m.enrol()
			a.do(m)
			for _, f := range m.judge(a.op) {
				if f.Class != protocol.Info {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

const rawHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"

// A process that executes one program after the other is caught in between, or told. One
// that does so a few times, as shells do, is read.
func TestProcs_WhoExecutesOnAndOn(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	for _, c := range []struct{ changes, want int }{{0, 0}, {1, 0}, {6, 0}, {1000, 1}} {
		reads := 0
		m.exe = func(link string) (string, error) {
			if exe, err := os.Readlink(link); err != nil || !strings.HasSuffix(link, "/300/exe") || reads == c.changes {
				return exe, err
			}
			reads++
			return fmt.Sprintf("/usr/bin/%d", reads), nil
		}
		m.startAgent()
		f := m.judge(protocol.OpProcs)
		if len(f) != c.want {
			t.Errorf("%d programs: %+v", c.changes, f)
		}
		if c.want > 0 && (f[0].Reason != expect.ReasonRestless || f[0].Class != protocol.Soft || !strings.HasPrefix(f[0].Detail, "process 300 (dockerd), child of 1,")) {
			t.Errorf("%+v", f)
		}
	}
}

// A machine with many cores compiles: most of what is listed is gone when it is read.
func TestProcs_ManyEnd(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	for pid := 1000; pid < 1500; pid++ {
		m.check(os.MkdirAll(m.path("proc", fmt.Sprint(pid)), 0o755))
	}
	f := m.judge(protocol.OpProcs)
	if len(f) != 1 || f[0].Reason != expect.ReasonVanished || f[0].Class != protocol.Info || !strings.HasPrefix(f[0].Detail, "500 of 50") {
		t.Errorf("%+v", f)
	}
	for pid := 1000; pid < 1500; pid++ { // and as many wait for their parents
		m.write(fmt.Appendf(nil, "%d (sh) Z 1 0 0 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 766\n", pid), "proc", fmt.Sprint(pid), "stat")
		m.write(nil, "proc", fmt.Sprint(pid), "maps")
		m.check(os.MkdirAll(m.path("proc", fmt.Sprint(pid), "task"), 0o755))
	}
	if f := m.judge(protocol.OpProcs); len(f) > 0 {
		t.Errorf("%+v", f)
	}
}

// Who takes cores may be set while the machine starts; then it stays.
func TestBoot_HelpersStay(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	set := func(pattern string) { m.write([]byte(pattern+"\n"), "proc/sys/kernel/core_pattern") }
	for _, pattern := range []string{"|/bin/false", "|/usr/bin/dockerd", "core", "|/bin/dockerd %P %u", "|/lib/systemd/systemd %P", "core"} { // systemd and its settings
		set(pattern)
		m.uptime += time.Second
		if f := m.judge(protocol.OpBoot); len(f) > 0 {
			t.Errorf("%s while it starts: %+v", pattern, f)
		}
	}
	m.uptime = 181 * time.Second
	if f := m.judge(protocol.OpBoot); len(f) > 0 {
		t.Errorf("it has started: %+v", f)
	}
	set("|/usr/bin/dockerd")
	for range 2 {
		m.uptime += time.Second
		if f := m.judge(protocol.OpBoot); len(f) != 1 || f[0].Reason != expect.ReasonHelper || f[0].Class != protocol.Fatal {
			t.Errorf("a program of the image takes cores later: %+v", f)
		}
	}
	set("core")
	m.uptime += time.Second
	if f := m.judge(protocol.OpBoot); len(f) > 0 {
		t.Errorf("it was put back: %+v", f)
	}
	set("|/bin/false")
	if f := m.judge(protocol.OpBoot); len(f) > 0 {
		t.Errorf("it goes down: %+v", f)
	}
	set("|/usr/bin/dockerd")
	if f := m.judge(protocol.OpBoot); len(f) != 1 || f[0].Reason != expect.ReasonHelper {
		t.Errorf("a program of the image takes cores after that: %+v", f)
	}
}
