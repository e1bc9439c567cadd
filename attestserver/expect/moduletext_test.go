package expect_test

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
	"portcullis/images/modtext"
	"portcullis/images/modtext/modtest"
)

// moduleQuestions are enough for all of a machine's modules to be looked at.
const moduleQuestions = 4

// known asks until the gateway knows the modules, and then nothing may be wrong.
func (m *machine) known() {
	m.t.Helper()
	for range moduleQuestions {
		if f := m.judge(protocol.OpModules); len(f) > 0 {
			m.t.Fatalf("of an honest machine: %+v", f)
		}
	}
}

// patch changes bytes of the module that is loaded.
func (m *machine) patch(at int, code ...byte) {
	copy(m.bridge[at:], code)
	m.kernel(m.text)
}

func (m *machine) asked() (p protocol.ModulesParams) {
	m.t.Helper()
	in := m.ask(protocol.OpModules, false)
	m.check(protocol.DecodeOp(in.Params, protocol.MaxParams, &p))
	return p
}

func TestModuleText_FoundBySecondQuestion(t *testing.T) {
	for name, at := range map[string]int{"code": 0x200, "another piece": 0x1700, "the entry of a function": 0x14, "a return": 0x40, "what was patched at load": 0x59} {
		m := newMachine(t)
		m.known()
		m.patch(at, 0xe8, 1, 2)
		list := m.judge(protocol.OpModules)
		list = append(list, m.judge(protocol.OpModules)...)
		m.wants(list, protocol.Fatal, expect.ReasonModuleText, "bridge: .text+0x")
		if m.judge(protocol.OpModules) == nil {
			t.Errorf("%s: forgotten", name)
		}
		copy(m.bridge, modtest.Text(""))
		m.kernel(m.text)
		m.judge(protocol.OpModules) // its text is another one again
		m.known()
	}
}

func TestModuleText_WhatTheKernelDoesItself(t *testing.T) {
	m := newMachine(t)
	m.patch(0x58, 0x0f, 0x01, 0xca) // an alternative, before the first question
	m.known()
	m.patch(0x20, 0xe9, 0xdb, 0, 0, 0) // a jump label is switched on
	m.patch(0x30, 0x0f, 0x1f, 0x44, 0, 0)
	m.known()
}

// A module without any text is no reason to wait for where all modules are: a call into
// memory that is no module's is told.
func TestModuleText_CallIntoNoModule(t *testing.T) {
	m := newMachine(t)
	m.write([]byte("tables 4096 0 - Live 0xffffffffc0020000\nbridge 300000 0 - Live 0xffffffffc0000000\n"), "proc/modules")
	m.module("tables", tablesID)
	m.section("tables", ".data", modtest.HelperAt)
	m.known()
	modtest.Branch(m.bridge, 0x30, modtest.DataAt+0x100000) // a static call
	m.kernel(m.text)
	list := m.judge(protocol.OpModules)
	list = append(list, m.judge(protocol.OpModules)...)
	m.wants(list, protocol.Fatal, expect.ReasonModuleText, "bridge: .text+0x30")
}

func TestModuleText_SeenWholeAndThenByChance(t *testing.T) {
	m := newMachine(t)
	if p := m.asked(); len(p.Modules) != 0 {
		t.Errorf("first question: %+v", p)
	}
	m.judge(protocol.OpModules)
	p := m.asked()
	if len(p.Modules) != 1 || !p.Modules[0].Layout || len(p.Modules[0].Pieces) != 2 {
		t.Errorf("second question: %+v", p)
	}
	m.known()
	again := 0
	for range 200 {
		p := m.asked()
		if len(p.Modules) != 1 || p.Modules[0].Layout {
			t.Fatalf("later question: %+v", p)
		}
		again += len(p.Modules[0].Pieces)
	}
	if again == 0 || again > 100 {
		t.Errorf("%d pieces in 200 questions", again)
	}
}

func TestModuleText_BreakpointThatStays(t *testing.T) {
	m := newMachine(t)
	m.known()
	m.patch(0x20, 0xcc)
	var list []protocol.Finding
	for range moduleQuestions {
		list = append(list, m.judge(protocol.OpModules)...)
	}
	m.wants(list, protocol.Fatal, expect.ReasonModuleText, "a breakpoint stays")
}

func TestModulePlace(t *testing.T) {
	for detail, do := range map[string]func(*machine){
		"where no module is": func(m *machine) { m.section("bridge", ".text", 0xffffffff81000000) },
		"no multiple of 16":  func(m *machine) { m.section("bridge", ".text", modtest.TextAt+8) },
		"no section .data":   func(m *machine) { m.check(os.Remove(m.path("sys/module/bridge/sections/.data"))) },
	} {
		m := newMachine(t)
		do(m)
		m.judge(protocol.OpModules)
		m.wants(m.judge(protocol.OpModules), protocol.Fatal, expect.ReasonModulePlace, detail)
	}
}

// A plain copy of the text elsewhere is no way out: its branches are then others.
func TestModuleText_MovedToACopy(t *testing.T) {
	m := newMachine(t)
	m.known()
	m.bridge = append(bytes.Clone(m.bridge), append(make([]byte, 0x2000-len(m.bridge)), m.bridge...)...)
	m.patch(0x200, 0xcc)
	m.section("bridge", ".text", modtest.TextAt+0x2000)
	m.judge(protocol.OpModules)
	m.wants(m.judge(protocol.OpModules), protocol.Fatal, expect.ReasonModuleText, "bridge: .text")
}

func TestModuleUnread(t *testing.T) {
	m := newMachine(t)
	m.known()
	m.check(os.Remove(m.path("sys/module/bridge/sections/.text")))
	var list []protocol.Finding
	for range 3 {
		list = append(list, m.judge(protocol.OpModules)...)
	}
	m.wants(list, protocol.Fatal, expect.ReasonModuleUnread, "bridge")
}

// An agent that does not answer what it was asked has said nothing.
func TestModuleText_AnotherAnswer(t *testing.T) {
	m := newMachine(t)
	m.known()
	for name, edit := range map[string]func(*protocol.ModulesData){
		"none":           func(d *protocol.ModulesData) { d.Text = nil },
		"another module": func(d *protocol.ModulesData) { d.Text[0].Name = "veth" },
		"surplus bytes":  func(d *protocol.ModulesData) { d.Raw = []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x58, 1, 0, 0, 'a'} },
	} {
		in := m.input(protocol.OpModules, false)
		var d protocol.ModulesData
		m.check(protocol.DecodeOp(in.Output.Data, protocol.MaxData, &d))
		edit(&d)
		b, err := protocol.EncodeOp(d)
		m.check(err)
		in.Output = protocol.Output{Data: b, Digest: in.Key.Digest(protocol.OpModules, in.Params, b)}
		if list := m.twins[protocol.OpModules].Judge(in); len(list) == 0 || list[0].Reason != expect.ReasonMalformed {
			t.Errorf("%s: %+v", name, list)
		}
	}
	m.known()
}

// An image of an older build has no list of the kernel's symbols: the text is not asked
// for, and the verdict says so.
func TestModuleText_ImageWithoutSymbols(t *testing.T) {
	m := newMachine(t)
	if w := m.twins[protocol.OpModules].(protocol.Warner).Warnings(m.state, m.refs); len(w) > 0 {
		t.Errorf("warns: %v", w)
	}
	m.check(os.Remove(m.path("tree", modtext.Path)))
	m.check(os.MkdirAll(m.path("old"), 0o755))
	if out, err := exec.Command("mksquashfs", m.path("tree"), m.path("old", "root.img"), "-noappend", "-all-root", "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs (package squashfs-tools): %v\n%s", err, out)
	}
	all, err := expect.All(&protocol.Image{Dir: m.path("old"), Manifest: m.image.Manifest, Digest: m.image.Digest})
	m.check(err)
	for _, e := range all {
		if e.Name() == protocol.OpModules {
			m.twins[e.Name()] = e
		}
		t.Cleanup(func() { e.(interface{ Close() error }).Close() })
	}
	m.known()
	if p := m.asked(); len(p.Modules) != 0 {
		t.Errorf("asked for %+v", p)
	}
	if w := m.twins[protocol.OpModules].(protocol.Warner).Warnings(m.state, m.refs); len(w) != 1 {
		t.Errorf("warns: %v", w)
	}
}
