package expect_test

import (
	"testing"
	"time"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

// A process that was seen with little power and has more later has it from
// somebody who writes to the kernel's memory.
func TestAttack_MorePowerThanTheKernelGives(t *testing.T) {
	for _, a := range []struct {
		name, detail string
		do           func(*machine)
	}{
		{"credentials are overwritten", "process 300 (dockerd), /usr/bin/dockerd: its capabilities grew", func(m *machine) {
			m.power(300, 0, 0x1ff, 0x1ff, 2, 1)
		}},
		{"credentials are overwritten and a shell is executed", "its program cannot raise them", func(m *machine) {
			m.process(300, "systemd", "/usr/lib/systemd/systemd", m.files["/usr/lib/systemd/systemd"])
			m.power(300, 0, 0x1ff, 0x1ff, 2, 1)
		}},
		{"a seccomp filter is taken away", "its seccomp filter is gone", func(m *machine) { m.power(300, 1000, 0, 0x1ff, 0, 1) }},
		{"no_new_privs is cleared", "no_new_privs is gone", func(m *machine) { m.power(300, 1000, 0, 0x1ff, 2, 0) }},
		{"the bounding set is widened", "its bounding set grew", func(m *machine) { m.power(300, 1000, 0, 0x3ff, 2, 1) }},
		{"a process in a user namespace returns to the first", "it has left its user namespace", func(m *machine) {
			m.link("user:[4026532999]", "proc/300/ns/user")
			m.wantsNone(protocol.OpProcs)
			m.link("user:[4026531837]", "proc/300/ns/user")
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			m := newMachine(t)
			m.wantsNone(protocol.OpProcs)
			m.wantsNone(protocol.OpProcs)
			a.do(m)
			for range 2 { // it is told as long as it runs
				m.wants(m.judge(protocol.OpProcs), protocol.Fatal, expect.ReasonMorePower, a.detail)
			}
		})
	}
}

func TestHonestPower_NoFinding(t *testing.T) {
	for _, a := range []struct {
		name string
		do   func(*machine)
	}{
		{"power is given up", func(m *machine) { m.power(300, 1000, 0, 0, 2, 1) }},
		{"a process makes a user namespace of its own", func(m *machine) {
			m.link("user:[4026532999]", "proc/300/ns/user")
			m.power(300, 1000, 0x1ff, 0x1ff, 2, 1)
		}},
		{"root executes another program", func(m *machine) {
			m.power(300, 0, 0, 0x1ff, 2, 1)
			m.wantsNone(protocol.OpProcs)
			m.process(300, "systemd", "/usr/lib/systemd/systemd", m.files["/usr/lib/systemd/systemd"])
			m.power(300, 0, 0x1ff, 0x1ff, 2, 1)
		}},
		{"a program raises its power because the image lets it", func(m *machine) {
			m.wantsNone(protocol.OpProcs)
			m.process(300, "su", "/usr/bin/su", m.files["/usr/bin/su"])
			m.power(300, 0, 0x1ff, 0x1ff, 2, 1)
		}},
		{"the process id is another's", func(m *machine) {
			m.power(300, 0, 0x1ff, 0x1ff, 0, 0)
			m.write([]byte("300 (dockerd) S 1 0 0 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 9999\n"), "proc/300/stat")
		}},
		{"a process ends before its power is read", func(m *machine) {
			m.remove("proc/300/ns/user")
			m.ends(300, 2)
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			m := newMachine(t)
			m.wantsNone(protocol.OpProcs)
			m.uptime += time.Second
			a.do(m)
			m.wantsNone(protocol.OpProcs)
		})
	}
}
