package expect_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"portcullis/agent/probe"
	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

var allOps = []string{protocol.OpBoot, protocol.OpBlock, protocol.OpProcs, protocol.OpPmem, protocol.OpModules, protocol.OpNet,
	protocol.OpHw, protocol.OpKtext, protocol.OpTpm, protocol.OpTsm}

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
			m.wants(m.judge(a.op), protocol.Fatal, a.reason, a.detail)
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
			m.check(os.Remove(m.path("proc/500/maps")))
		}},
		{"a process ends before its file is described", protocol.OpProcs, func(m *machine) {
			m.process(500, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"])
			m.check(os.RemoveAll(m.path("proc/300")))
			for link := range m.stats {
				if filepath.Dir(filepath.Dir(link)) == "500" {
					delete(m.stats, link)
				}
			}
			m.check(os.RemoveAll(m.path("proc/500/map_files")))
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
