package ktextmask

import (
	"bytes"
	"compress/gzip"
	"slices"
	"testing"

	"portcullis/images/textpatch"
)

// hardened is the sample's kernel without jump labels and tracer, and with its
// configuration in it.
func hardened(t testing.TB, config string) *sample {
	t.Helper()
	s := newSample()
	clear(s.rodata[64:][:16*sampleJumps])
	clear(s.init)
	s.jumps, s.entries = nil, nil
	s.rodata = append(s.rodata, "IKCFG_ST"...)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	write(t, z, []byte(config))
	s.rodata = append(append(s.rodata, packed.Bytes()...), "IKCFG_ED"...)
	return s
}

const allOff = "CONFIG_EFI=y\n# CONFIG_MODULES is not set\n"

func TestBuild_HardenedKernelLeavesOnlyAddressesOut(t *testing.T) {
	s := hardened(t, allOff)
	m, err := Build(bzImage(t, s.elf(), "zstd"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.Without, options) || m.Has(Modules) {
		t.Errorf("without %q, want all of %q", m.Without, options)
	}
	if len(m.Classes) != 1 || m.Classes[0].Name != RuntimeConst {
		t.Errorf("%d classes are left out at run time", len(m.Classes))
	}
	for i, want := range map[int][]Range{0: s.calls, 1: s.tramps} {
		if !slices.Equal(m.Once[i].Ranges, want) {
			t.Errorf("%s: %d ranges, want %d", m.Once[i].Name, len(m.Once[i].Ranges), len(want))
		}
	}
	for _, r := range append(slices.Clone(s.calls), s.tramps...) {
		if !slices.ContainsFunc(m.Boot, func(b Range) bool { return b.Off <= r.Off && r.Off+r.Len <= b.Off+b.Len }) {
			t.Fatalf("the site at %#x is in no reference", r.Off)
		}
	}
	file, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := again.Encode(); err != nil || !bytes.Equal(file, second) || !slices.Equal(again.Without, m.Without) || len(again.Once) != 2 {
		t.Errorf("what is new of the mask does not survive being written and read: %v", err)
	}
}

// Each of the options brings somebody who updates static calls while the kernel runs.
func TestBuild_StaticCallsSettleOnlyWhereNobodyUpdatesThem(t *testing.T) {
	for _, option := range []string{Modules, Tracepoints, PreemptDynamic, KVM, Xen} {
		m, err := Build(bzImage(t, hardened(t, "CONFIG_"+option+"=y\n").elf(), "gzip"))
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Once) != 0 || classRanges(m, StaticCall) == nil {
			t.Errorf("with %s static calls count as settled", option)
		}
	}
}

func TestBuild_TablesAreLookedForWhereTheConfigurationSaysSo(t *testing.T) {
	for name, s := range map[string]*sample{
		"jump labels":            hardened(t, "CONFIG_JUMP_LABEL=y\n"),
		"ftrace":                 hardened(t, "CONFIG_FTRACE=y\n"),
		"a broken configuration": hardened(t, "JUMP_LABEL off\n"),
		"no static calls": func() *sample {
			s := hardened(t, allOff)
			clear(s.rodata[64+16*sampleJumps:][:8*sampleCalls])
			return s
		}(),
	} {
		if _, err := Build(bzImage(t, s.elf(), "gzip")); err == nil {
			t.Errorf("%s: a mask came out", name)
		}
	}
}

func TestOdd_FindsACallThatLeadsOut(t *testing.T) {
	s := hardened(t, allOff)
	m, err := Build(bzImage(t, s.elf(), "gzip"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range s.tramps { // the sample's go nowhere
		copy(s.text[r.Off:], textpatch.Return5)
	}
	if odd, err := m.Settled().Odd(bytes.NewReader(s.text)); err != nil || len(odd) > 0 {
		t.Errorf("of an untouched text: %v, %v", odd, err)
	}
	at := s.calls[3].Off
	copy(s.text[at:], []byte{0xe8, 0, 0, 0, 0x7f}) // far behind the text
	copy(s.text[s.calls[4].Off:], textpatch.Nop5)
	if odd, err := m.Settled().Odd(bytes.NewReader(s.text)); err != nil || len(odd) != 1 || odd[0].Off != at {
		t.Errorf("%v, %v, want the one at %#x", odd, err, at)
	}
	if _, err := m.Settled().Odd(bytes.NewReader(s.text[:at])); err == nil {
		t.Error("a text that ends before a site was judged")
	}
}

func TestDecode_RefusesUnknownOptions(t *testing.T) {
	for _, list := range [][]string{{"SOMETHING"}, {Modules, BPFJIT}, {Modules, Modules}} {
		m := &Mask{Release: "r", TextBase: 1, TextSize: 100, Stock: make([][32]byte, 1), Without: list}
		file, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(file); err == nil {
			t.Errorf("%q: accepted", list)
		}
	}
}
