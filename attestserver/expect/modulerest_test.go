package expect_test

import (
	"fmt"
	"slices"
	"testing"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
	"portcullis/images/modtext/modtest"
)

// spareModules are modules of the image without text, of which none is loaded at first.
const spareModules = 40

func spare(i int) string { return fmt.Sprintf("spare%02d", i) }

// loaded says which modules are loaded beside bridge.
func (m *machine) loaded(at uint64, names ...string) {
	list := "bridge 300000 0 - Live 0xffffffffc0000000\n"
	for i := range spareModules {
		if !slices.Contains(names, spare(i)) {
			m.remove("sys/module", spare(i))
		}
	}
	for i, name := range names {
		list += name + " 4096 0 - Live 0xffffffffc0020000\n"
		m.module(name, tablesID)
		m.section(name, ".data", at+uint64(i)<<12)
	}
	m.write([]byte(list), "proc/modules")
}

// hook has a static call of bridge lead to where no module is.
func (m *machine) hook() {
	modtest.Branch(m.bridge, 0x30, modtest.DataAt+0x100000)
	m.kernel(m.text)
}

// Two modules that come and go in turns do not keep the calls of a third one from being
// judged.
func TestAttack_ModulesTakingTurnsHideNoCall(t *testing.T) {
	m := newMachine(t)
	m.known()
	m.hook()
	for i := range 12 {
		m.loaded(modtest.HelperAt+uint64(i)<<16, spare(i%2))
		if list := m.judge(protocol.OpModules); len(list) > 0 {
			m.wants(list, protocol.Fatal, expect.ReasonModuleText, "bridge: .text+0x30")
			return
		}
	}
	t.Error("not found in 12 answers")
}

// Where another module is loaded before each answer the call cannot be judged; the verdict
// says so, and the answer after the last one finds it.
func TestAttack_EverNewModulesAreTold(t *testing.T) {
	m := newMachine(t)
	m.known()
	m.hook()
	var list []protocol.Finding
	for i := range spareModules {
		m.loaded(modtest.HelperAt, spare(i))
		list = append(list, m.judge(protocol.OpModules)...)
	}
	m.wants(list, protocol.Info, expect.ReasonModuleUnjudged, "text of bridge")
	if i := slices.IndexFunc(list, func(f protocol.Finding) bool { return f.Class != protocol.Info }); i >= 0 {
		t.Errorf("judged: %+v", list[i])
	}
	m.judge(protocol.OpModules)
	m.wants(m.judge(protocol.OpModules), protocol.Fatal, expect.ReasonModuleText, "bridge: .text+0x30")
}

// An honest PC that loads and unloads modules all the time, and whose kernel switches
// jump labels, is accused of nothing.
func TestModules_HonestChurn(t *testing.T) {
	m := newMachine(t)
	m.known()
	for i := range 3 * spareModules {
		m.loaded(modtest.HelperAt+uint64(i)<<16, spare(i%spareModules), spare((i*7+1)%spareModules))
		if i%3 == 0 {
			m.patch(0x20, modtest.Text("")[0x20:0x25]...)
		} else {
			m.patch(0x20, 0xe9, 0xdb, 0, 0, 0)
		}
		if list := m.judge(protocol.OpModules); len(list) > 0 {
			t.Fatalf("answer %d: %+v", i, list)
		}
	}
}

// What the Pi's disk did not give once is read again for the next answer.
func TestModules_ReadErrorIsNotRemembered(t *testing.T) {
	m := newMachine(t)
	m.known()
	disk, err := expect.OnDisk(m.twins[protocol.OpModules])
	m.check(err)
	disk.Broken = true
	m.wants(m.judge(protocol.OpModules), protocol.Fatal, protocol.ProbeUnjudged, "input/output error")
	disk.Broken = false
	m.known()
	disk, err = expect.OnDisk(m.twins[protocol.OpModules])
	m.check(err)
	in := m.input(protocol.OpModules, false) // the list of files is read, then the disk fails
	m.check(expect.ReadIndex(m.twins[protocol.OpModules]))
	disk.Broken = true
	m.wants(m.twins[protocol.OpModules].Judge(in), protocol.Fatal, protocol.ProbeUnjudged, "module bridge")
	disk.Broken = false
	m.known()
}
