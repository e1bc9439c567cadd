package kernel

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"portcullis/images/debroot"
	"portcullis/images/kconfig"
	rootfs "portcullis/rootfs/hpc"
)

func fragment(t testing.TB) []kconfig.Line {
	t.Helper()
	text, err := rootfs.FS.ReadFile(fragmentName)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := kconfig.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// The research's list (attestation §4.2): nothing of it may get lost from the file,
// whatever the kernel's tools would choose by themselves.
func TestFragment_SaysWhatMustNotBe(t *testing.T) {
	lines := fragment(t)
	for _, name := range []string{
		"FTRACE", "KPROBES", "KFENCE", "LIVEPATCH", "BPF_JIT", "HIBERNATION", "KEXEC", "KEXEC_FILE", "JUMP_LABEL", "MODULES",
		"RANDOMIZE_BASE", "PREEMPT_DYNAMIC", "XEN", "DEVMEM", "DEBUG_FS",
	} {
		if !slices.Contains(lines, opt(name, kconfig.Off)) {
			t.Errorf("%s is not switched off", name)
		}
		if !slices.Contains(Never, name) {
			t.Errorf("%s is not among what a build refuses", name)
		}
	}
	for _, l := range lines {
		if l.Value == "m" {
			t.Errorf("%s is a module", l.Name)
		}
		if l.Value == kconfig.Off && slices.Contains(Always, l.Name) || l.Value != kconfig.Off && slices.Contains(Never, l.Name) {
			t.Errorf("%s=%s is against the rules of the package", l.Name, l.Value)
		}
	}
	if !slices.Contains(lines, opt("LOCALVERSION", `"`+localVersion+`"`)) {
		t.Errorf("the fragment does not name the release %s", localVersion)
	}
}

// final is a configuration that holds all of a fragment.
func final(lines []kconfig.Line) []kconfig.Line {
	out := slices.Clone(lines)
	for _, n := range Always {
		if !slices.Contains(out, opt(n, "y")) {
			out = append(out, opt(n, "y"))
		}
	}
	return out
}

func TestCheck_NamesEveryDifference(t *testing.T) {
	lines := fragment(t)
	if err := Check(final(lines), lines); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func([]kconfig.Line) []kconfig.Line
		say    string
	}{
		"a driver was dropped": {func(l []kconfig.Line) []kconfig.Line {
			return slices.DeleteFunc(l, func(x kconfig.Line) bool { return x.Name == "IGC" })
		}, "IGC"},
		"something switched itself on": {func(l []kconfig.Line) []kconfig.Line {
			i := slices.Index(l, opt("JUMP_LABEL", kconfig.Off))
			l[i].Value = "y"
			return l
		}, "JUMP_LABEL"},
		"selected by another": {func(l []kconfig.Line) []kconfig.Line { return append(l, opt("KEXEC_CORE", "y")) }, "KEXEC_CORE"},
		"a module":            {func(l []kconfig.Line) []kconfig.Line { return append(l, opt("SOUNDCARD", "m")) }, "SOUNDCARD"},
		"another value": {func(l []kconfig.Line) []kconfig.Line {
			i := slices.IndexFunc(l, func(x kconfig.Line) bool { return x.Name == "IMA_MEASURE_PCR_IDX" })
			l[i].Value = "11"
			return l
		}, "IMA_MEASURE_PCR_IDX"},
		"what is always needed": {func(l []kconfig.Line) []kconfig.Line {
			return slices.DeleteFunc(l, func(x kconfig.Line) bool { return x.Name == "CGROUPS" })
		}, "CGROUPS"},
	} {
		err := Check(c.change(final(lines)), lines)
		var e *debroot.Error
		if !errors.As(err, &e) || e.Reason != ReasonConfig || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func opt(name, value string) kconfig.Line { return kconfig.Line{Name: name, Value: value} }
