//go:build soak

package tamper

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/images/hpc"
	"portcullis/lab"
)

// maxMasked is how much of a hardened kernel's text may be left out of comparisons,
// in bytes: the addresses of a few tables that the kernel allocates at boot.
const maxMasked = 1024

// models are processors to which the kernel fits itself in different ways.
var models = []string{"", "Skylake-Server-v5,-erms,-fsrm"}

// notHardened are the attacks of the table that a hardened kernel gives no way to
// commit, or that name a place of Debian's kernel. Those of the first kind are tried
// in refused.
var notHardened = []string{"kprobe", "uprobe", "tracepoint", "modules-hidden-by-mount", "kernel-text-patched", "module-text-patched", "unlisted-module", "read-only-data-changed", "device-plugged-in"}

// refused are commands that fail on a hardened kernel even for root.
var refused = map[string]string{
	"a tracer":               "mount -t tracefs none /mnt",
	"the debug file system":  "mount -t debugfs none /mnt",
	"a module":               "cp /usr/bin/true /run/tamper.ko; insmod /run/tamper.ko",
	"the list of modules":    "cat /proc/modules",
	"another kernel":         "cat /sys/kernel/kexec_loaded",
	"physical memory":        "mknod /run/tamper-mem c 1 1 && dd if=/run/tamper-mem of=/dev/null bs=1 count=1",
	"I/O ports":              "mknod /run/tamper-port c 1 4 && dd if=/run/tamper-port of=/dev/null bs=1 count=1",
	"code of a program":      "printf x | dd of=/proc/1/mem bs=1 seek=$((0x$(head -1 /proc/1/maps | cut -d- -f1))) conv=notrunc",
	"lockdown taken back":    "echo none > /sys/kernel/security/lockdown",
	"a compiled BPF program": "cat /proc/sys/net/core/bpf_jit_enable",
}

// TestHardenedKernel boots the PC with the kernel of `make kernel` on two models of
// processors, twice each: the second boot must equal the reference of the first. Then
// it tries what such a kernel refuses, and commits the attacks that remain.
func TestHardenedKernel(t *testing.T) {
	t.Run("Debian's kernel, to compare", debianBeside)
	for _, cpu := range models {
		t.Run(strings.ReplaceAll("cpu "+cpu, ",", " "), func(t *testing.T) { hardened(t, cpu) })
	}
}

// started is a lab with a kernel, and what `image verify` says of that kernel's mask.
func started(ctx context.Context, t *testing.T, o lab.Options) (*lab.Lab, string) {
	t.Helper()
	o.Name, o.State = "hard", t.TempDir()
	if testing.Verbose() {
		o.Events = (&lab.Printer{Out: os.Stderr}).Print
	}
	l, err := lab.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	report := hpc.Verify(ctx, hpc.VerifyOptions{Dir: l.Built.Image, Now: time.Now()})
	if !report.OK {
		t.Fatalf("%s: %s", report.Reason, report.Detail)
	}
	last := report.Checks[len(report.Checks)-1].Detail
	t.Logf("summary: %s", last)
	return l, last
}

// limited ends after the labs that were started with it have been taken down.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// debianBeside boots Debian's kernel as often: what the hardened one costs is to be
// seen in the same run.
func debianBeside(t *testing.T) {
	ctx := limited(t)
	l, _ := started(ctx, t, lab.Options{Builder: &lab.Builder{Repository: "../.."}})
	for boot := range 2 {
		began, mark := time.Now(), l.Log.Mark()
		if _, err := l.Boot(ctx, 6*time.Minute); err != nil {
			t.Fatalf("boot %d: %v; %s", boot, err, l.Why(mark))
		}
		t.Logf("summary: boot %d is trusted after %.1f s", boot+1, time.Since(began).Seconds())
		if boot == 0 {
			l.PowerCut()
		}
	}
}

func hardened(t *testing.T, cpu string) {
	ctx := limited(t)
	l, last := started(ctx, t, lab.Options{CPU: cpu, Builder: &lab.Builder{Repository: "../..", Kernel: hpc.KernelHardened}})
	var agent string
	var masked, total int
	if _, err := fmt.Sscanf(last, "agent %s mask leaves out %d of %d bytes", &agent, &masked, &total); err != nil || masked > maxMasked {
		t.Errorf("%q: %v, want at most %d bytes", last, err, maxMasked)
	}
	var mark int
	for boot := range 2 {
		began := time.Now()
		mark = l.Log.Mark()
		if _, err := l.Boot(ctx, 6*time.Minute); err != nil {
			t.Fatalf("boot %d: %v; %s", boot, err, l.Why(mark))
		}
		t.Logf("summary: boot %d is trusted after %.1f s", boot+1, time.Since(began).Seconds())
		answers(ctx, t, l, mark)
		if boot == 0 {
			l.PowerCut()
		}
	}
	for what, command := range refused {
		r, err := l.Exec(ctx, "/bin/sh", "-ec", command)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if r.Exit == 0 {
			t.Errorf("%s: %q is possible: %s", what, command, r.Stdout)
		} else {
			t.Logf("summary: %s: %s", what, strings.TrimSpace(string(r.Stderr)))
		}
	}
	if cpu != "" {
		return // the attacks do not depend on the processor
	}
	remaining := slices.DeleteFunc(slices.Clone(Attacks), func(a Attack) bool {
		return a.Stage != Together || a.expected() != Found || slices.Contains(notHardened, a.Name)
	})
	remaining = append(remaining, Attack{Name: "kernel-text-changed", FoundBy: "ktext", Reasons: []string{"ktext-changed"}, Detail: "+0x100000..+0x104000",
		Host: func(ctx context.Context, l *lab.Lab) error {
			return poke(ctx, l, "Kernel code", 0x100123, []byte{0x5a})
		}})
	w := &runner{Options: Options{Limit: 2 * time.Minute}, l: l, round: 1}
	if err := w.together(ctx, remaining); err != nil {
		t.Fatal(err)
	}
	for _, r := range w.report.Results {
		t.Logf("summary: %s: %s %s (%s)", r.Attack, r.Outcome, r.Reason, r.Detail)
		if !r.OK() {
			t.Error(r)
		}
	}
}

// answers waits for honest answers and wants no finding among them.
func answers(ctx context.Context, t *testing.T, l *lab.Lab, mark int) {
	t.Helper()
	for at, n := l.Log.Mark(), 0; n < honestAnswers; n++ {
		if _, err := l.Log.Wait(ctx, at, lab.Is("evidence")); err != nil {
			t.Fatalf("answers of the honest PC: %v; %s", err, l.Why(mark))
		}
		at = l.Log.Mark()
	}
	for _, e := range l.Log.Since(mark) {
		if e.Name == "finding" && e.Text("class") != "info" {
			t.Errorf("found on an honest PC: %s %s: %s", e.Text("probe"), e.Text("reason"), e.Text("detail"))
		}
	}
}
