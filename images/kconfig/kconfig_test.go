package kconfig

import (
	"bytes"
	"compress/gzip"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	lines, err := Parse([]byte("# a comment\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"a \\\" b\"\nCONFIG_D=-5\nCONFIG_E=0x10\nCONFIG_F=m\n"))
	want := []Line{{"A", "y"}, {"B", Off}, {"C", `"a \" b"`}, {"D", "-5"}, {"E", "0x10"}, {"F", "m"}}
	if err != nil || !slices.Equal(lines, want) {
		t.Errorf("%v %v", lines, err)
	}
	for _, bad := range []string{"CONFIG_A", "CONFIG_A=yes", "A=y", "CONFIG_A=y\nCONFIG_A=y", "CONFIG_A=\"x", "CONFIG_A=y\n# CONFIG_A is not set", strings.Repeat("#\n", Max)} {
		if lines, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%.30q: %v", bad, lines)
		}
	}
}

func TestMerge_DropsModulesAndFollowsTheFragment(t *testing.T) {
	base := []Line{{"A", "y"}, {"B", "m"}, {"C", "m"}, {"D", "y"}, {"E", "100"}}
	got, err := Parse(Merge(base, []Line{{"C", "y"}, {"D", Off}, {"F", "y"}}))
	want := []Line{{"A", "y"}, {"B", Off}, {"E", "100"}, {"C", "y"}, {"D", Off}, {"F", "y"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n"))
	f.Add([]byte("CONFIG_A=\"\\\"\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(Merge(nil, lines))
		if err != nil || !slices.Equal(lines, again) {
			t.Fatalf("%v %v %v", lines, again, err)
		}
	})
}

// embed packs a configuration as kernel/configs.c does.
func embed(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("before IKCFG_ST only a name\x00IKCFG_ST")
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	b.WriteString("IKCFG_ED behind")
	return b.Bytes()
}

func TestEmbedded(t *testing.T) {
	good := embed(t, "CONFIG_A=y\n# CONFIG_B is not set\n")
	lines, found, err := Embedded(good)
	if err != nil || !found || !slices.Equal(lines, []Line{{"A", "y"}, {"B", Off}}) {
		t.Errorf("%v %t %v", lines, found, err)
	}
	if _, found, err := Embedded([]byte("a kernel without")); found || err != nil {
		t.Errorf("%t %v", found, err)
	}
	for name, bad := range map[string][]byte{
		"no end":  bytes.ReplaceAll(good, []byte("IKCFG_ED"), nil),
		"cut":     append(bytes.Clone(good[:60]), "IKCFG_ED"...),
		"no form": embed(t, "A=y\n"),
	} {
		if _, found, err := Embedded(bad); found || err == nil {
			t.Errorf("%s: %t %v", name, found, err)
		}
	}
}

func FuzzEmbedded(f *testing.F) {
	f.Add(embed(f, "CONFIG_A=y\n"))
	f.Add([]byte("IKCFG_ST\x1f\x8bIKCFG_ED"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, found, err := Embedded(b); found && err != nil {
			t.Fatal(err)
		}
	})
}
