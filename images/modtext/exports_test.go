package modtext

import (
	"bytes"
	"strings"
	"testing"

	"portcullis/images/modtext/modtest"
)

func TestParseExports(t *testing.T) {
	e, err := ParseExports(modtest.Exports)
	if err != nil || e.Len() != 5 {
		t.Fatalf("%v, %v", e, err)
	}
	for name, want := range map[string]uint64{"kfree": kernelBase + 0x500, "__SCT__call": kernelBase + 0x100} {
		if a, ok := e.Lookup(name); !ok || a != want {
			t.Errorf("%s is at %#x, %t", name, a, ok)
		}
	}
	for _, name := range []string{"", "a", "kfre", "kfree1", "~"} {
		if a, ok := e.Lookup(name); ok {
			t.Errorf("%s is at %#x", name, a)
		}
	}
	if e, err := ParseExports([]byte(exportsHeader)); err != nil || e.Len() != 0 {
		t.Errorf("a kernel without modules: %v, %v", e, err)
	}
}

func TestParseExports_RefusesAnotherForm(t *testing.T) {
	line := "ffffffff81000500 kfree\n"
	for name, s := range map[string]string{"empty": "", "no header": line, "no end": exportsHeader + strings.TrimSuffix(line, "\n"), "twice": exportsHeader + line + line,
		"unsorted": exportsHeader + line + strings.Replace(line, "kfree", "a", 1), "upper case": exportsHeader + strings.Replace(line, "ffffffff", "FFFFFFFF", 1), "short": exportsHeader + line[1:],
		"no name": exportsHeader + "ffffffff81000500 \n", "blank": exportsHeader + "\n", "space": exportsHeader + "ffffffff81000500 k free\n", "long": exportsHeader + "ffffffff81000500 " + strings.Repeat("k", maxSymbolName+1) + "\n"} {
		if e, err := ParseExports([]byte(s)); err == nil {
			t.Errorf("%s: %d symbols", name, e.Len())
		}
	}
}

func FuzzParseExports(f *testing.F) {
	f.Add(modtest.Exports)
	f.Add([]byte(exportsHeader))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseExports(b)
		if err != nil {
			return
		}
		if n := bytes.Count(b, []byte("\n")); n != e.Len()+1 {
			t.Fatalf("%d symbols of %d lines", e.Len(), n)
		}
		for i := range e.lines {
			if _, ok := e.Lookup(string(e.name(i))); !ok {
				t.Fatalf("%q is not found", e.name(i))
			}
		}
	})
}

func FuzzBuildExports(f *testing.F) {
	f.Add(modtest.Module(depends))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = BuildExports(b) })
}
