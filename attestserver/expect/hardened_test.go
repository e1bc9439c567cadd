package expect_test

import (
	"bytes"
	"os"
	"testing"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

// What the signed kernel was built without is absent without anybody being accused.
func TestHardenedMachine_NoFinding(t *testing.T) {
	m := newHardened(t)
	m.enrol()
	for _, op := range allOps {
		if f := m.judge(op); len(f) > 0 {
			t.Errorf("%s: %+v", op, f)
		}
	}
}

// Absence follows from the image: each door that opens where there can be none is
// found, and each that is closed where the kernel has one.
func TestBoot_Doors(t *testing.T) {
	for name, c := range map[string]struct {
		hardened bool
		detail   string
		do       func(*machine)
	}{
		"modules on a kernel without": {true, "modules is there", func(m *machine) { m.write([]byte("rootkit 1 0 - Live 0x0\n"), "proc/modules") }},
		"kexec on a kernel without":   {true, "kexec is there", func(m *machine) { m.write([]byte("0\n"), "sys/kernel/kexec_loaded") }},
		"tracefs on a kernel without": {true, "tracefs is there", func(m *machine) { m.noFS = []string{"debugfs"} }},
		"debugfs on a kernel without": {true, "debugfs is there", func(m *machine) { m.noFS = []string{"tracefs"} }},
		"no modules on one with":      {false, "modules is not there", func(m *machine) { m.check(os.Remove(m.path("proc/modules"))) }},
		"no kexec on one with":        {false, "kexec is not there", func(m *machine) { m.check(os.Remove(m.path("sys/kernel/kexec_loaded"))) }},
		"no tracefs on one with":      {false, "tracefs is not there", func(m *machine) { m.noFS = []string{"tracefs"} }},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			if c.hardened {
				m = newHardened(t)
			}
			c.do(m)
			m.wants(m.judge(protocol.OpBoot), protocol.Fatal, expect.ReasonDoor, c.detail)
		})
	}
}

// A static call is patched at boot and then compared like all other text; what does
// not look like one never gets into the reference.
func TestKtext_SettledCalls(t *testing.T) {
	call := func(m *machine, code []byte) []byte {
		text := bytes.Clone(m.text)
		copy(text[100:], code)
		return text
	}
	inside, outside := []byte{0xe8, 0, 1, 0, 0}, []byte{0xe8, 0, 0, 0, 0x7f}
	m := newHardened(t)
	m.kernel(call(m, inside))
	m.enrol()
	if f := m.judge(protocol.OpKtext); len(f) > 0 {
		t.Fatalf("%+v", f)
	}
	m.kernel(call(m, []byte{0xe8, 0, 2, 0, 0}))
	m.wants(m.judge(protocol.OpKtext), protocol.Fatal, expect.ReasonKtext, "+0x0..+0x4000")

	m = newHardened(t)
	m.kernel(call(m, outside))
	in := m.input(protocol.OpKtext, true)
	m.wants(m.twins[protocol.OpKtext].(protocol.Enroller).Enrol(in), protocol.Fatal, expect.ReasonKtextImage, "1 static calls")
}
