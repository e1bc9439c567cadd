package pcr_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"portcullis/images/cpio"
	"portcullis/images/pcr"
	"portcullis/images/uki"
	"portcullis/images/uki/ukitest"
)

const cmdline = "console=ttyS0 panic=1 quiet portcullis.test=1"

// testImage returns a UKI of Debian's stub and kernel whose PID 1 tells what the TPM holds.
func testImage(t *testing.T, dir string) []byte {
	t.Helper()
	initPath := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", initPath, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build init: %v\n%s", err, out)
	}
	program, err := os.ReadFile(initPath)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive, 0)
	for _, err := range []error{
		w.Dir("dev", 0o755), w.CharDevice("dev/console", 0o600, 5, 1), w.Dir("proc", 0o755), w.Dir("sys", 0o755),
		w.File("init", 0o755, program), w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d := ukitest.Get(t)
	version, err := uki.KernelVersion(d.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	image, err := uki.Build(d.Stub, uki.Parts{
		// Lengths that are no multiple of 4: the stub pads, and pads are measured.
		OSRelease: []byte("ID=portcullis-test\nVERSION_ID=1\n\n"),
		Cmdline:   cmdline,
		Uname:     version,
		Kernel:    d.Kernel,
		Initrd:    cpio.Zstd(archive.Bytes()),
	})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// A PC with a TPM boots the image over TFTP by its firmware alone; its registers are the predicted ones.
func TestPredictionEqualsTheTPMAfterAUEFIPXEBoot(t *testing.T) {
	dir := t.TempDir()
	image := testImage(t, dir)
	want, err := pcr.Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	out := boot(t, dir, image)
	if !strings.Contains(out, "PCRTEST cmdline "+cmdline) {
		t.Errorf("the kernel has another command line")
	}
	log := eventLog(t, out)
	for i, value := range map[int]pcr.Value{9: want.PCR9, 11: want.PCR11, 12: want.PCR12, 8: {}} {
		if !strings.Contains(out, fmt.Sprintf("PCRTEST pcr %d %s", i, strings.ToUpper(value.String()))) {
			t.Errorf("PCR %d is not %s; the event log has\n%s", i, value, log.of(i))
		}
		// The log that the firmware kept leads to the same value.
		if got := log.replay(i); got != value {
			t.Errorf("the event log leads to %s in PCR %d, predicted is %s", got, i, value)
		}
	}
	// What the manifest says about the two PE images is what the firmware measured when it loaded them.
	info, err := uki.Describe(image)
	if err != nil {
		t.Fatal(err)
	}
	for name, digest := range map[string]string{"the UKI": info.Authenticode, "its .linux": info.LinuxAuthenticode} {
		if !strings.Contains(log.of(4), digest) {
			t.Errorf("Authenticode digest %s of %s is not in PCR 4's log:\n%s", digest, name, log.of(4))
		}
	}
}

var endLine = regexp.MustCompile(`PCRTEST end`)

// boot runs the PC until its init has told everything and returns the serial console.
func boot(t *testing.T, dir string, image []byte) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tftp := filepath.Join(dir, "tftp")
	state := filepath.Join(dir, "tpm")
	vars := filepath.Join(dir, "vars.fd")
	serial := filepath.Join(dir, "serial.log")
	socket := filepath.Join(dir, "tpm.sock")
	code, template := firmware(t)
	for _, err := range []error{
		os.MkdirAll(tftp, 0o755), os.MkdirAll(state, 0o700),
		os.WriteFile(filepath.Join(tftp, "hpc.efi"), image, 0o644), os.WriteFile(vars, template, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tpm := start(t, "swtpm", "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--ctrl", "type=unixio,path="+socket)
	for {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		select {
		case <-tpm:
			t.Fatal("swtpm ended at once")
		case <-time.After(10 * time.Millisecond):
		}
	}
	pc := start(t, "qemu-system-x86", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-no-reboot",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+code,
		"-drive", "if=pflash,format=raw,unit=1,file="+vars,
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no",
		"-netdev", "user,id=net0,tftp="+tftp+",bootfile=hpc.efi",
		"-device", "virtio-net-pci,netdev=net0,bootindex=1,romfile=",
		"-device", "virtio-rng-pci",
		"-chardev", "socket,id=tpm0,path="+socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-tis,tpmdev=tpm0",
		"-serial", "file:"+serial)
	for {
		out, _ := os.ReadFile(serial)
		if endLine.Match(out) {
			return strings.ReplaceAll(string(out), "\r", "")
		}
		select {
		case <-pc:
			out, _ := os.ReadFile(serial)
			if endLine.Match(out) {
				return strings.ReplaceAll(string(out), "\r", "")
			}
			t.Fatalf("the PC ended without a word of its init:\n%s", out)
		case <-ctx.Done():
			t.Fatalf("the PC did not get as far as its init in time:\n%s", out)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// start runs a program that the end of the test kills; the channel closes when it ends.
func start(t *testing.T, pkg, name string, args ...string) <-chan struct{} {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: install %s", name, pkg)
	}
	cmd := exec.Command(path, args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		if t.Failed() && log.Len() > 0 {
			t.Logf("%s: %s", name, log.Bytes())
		}
	})
	return done
}

// firmware returns the path of OVMF's code and the content of its variables.
func firmware(t *testing.T) (code string, vars []byte) {
	t.Helper()
	for _, suffix := range []string{"_4M.fd", ".fd"} {
		code = "/usr/share/OVMF/OVMF_CODE" + suffix
		vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS" + suffix)
		if _, err2 := os.Stat(code); errors.Join(err, err2) == nil {
			return code, vars
		}
	}
	t.Fatal("OVMF is missing: install ovmf")
	return "", nil
}

// events is the firmware's log, digests of the SHA-256 bank only.
type events []event

type event struct {
	pcr    int
	kind   uint32
	digest [sha256.Size]byte
	data   []byte
}

func (l events) of(i int) string {
	var b strings.Builder
	for _, e := range l {
		if e.pcr == i {
			fmt.Fprintf(&b, "  %#x %x %.80q\n", e.kind, e.digest, e.data)
		}
	}
	return b.String()
}

func (l events) replay(i int) pcr.Value {
	var v pcr.Value
	for _, e := range l {
		if e.pcr == i && e.kind != 3 { // EV_NO_ACTION extends nothing
			v = v.Extend(e.digest)
		}
	}
	return v
}

// eventLog reads the TCG2 crypto-agile log (TCG PC Client Platform Firmware
// Profile, chapter 10) that the init printed.
func eventLog(t *testing.T, out string) events {
	t.Helper()
	var text strings.Builder
	for _, line := range strings.Split(out, "\n") {
		if _, part, ok := strings.Cut(line, "PCRTEST log "); ok {
			text.WriteString(strings.TrimSpace(part))
		}
	}
	raw, err := base64.StdEncoding.DecodeString(text.String())
	if err != nil || len(raw) < 32 {
		t.Fatalf("no event log: %v\n%s", err, out)
	}
	r := reader{t: t, b: raw}
	// The first event has the old form and names the digests of the others.
	r.take(4 + 4 + 20)
	r.take(int(r.u32()))
	sizes := map[uint16]int{4: 20, 0xb: 32, 0xc: 48, 0xd: 64, 0x12: 32}
	var log events
	for len(r.b) > 0 {
		e := event{pcr: int(r.u32()), kind: r.u32()}
		for range r.u32() {
			alg := r.u16()
			if digest := r.take(sizes[alg]); alg == 0xb {
				e.digest = [32]byte(digest)
			}
		}
		e.data = r.take(int(r.u32()))
		log = append(log, e)
	}
	return log
}

type reader struct {
	t *testing.T
	b []byte
}

func (r *reader) take(n int) []byte {
	r.t.Helper()
	if n < 0 || n > len(r.b) {
		r.t.Fatalf("the event log is cut off: %d bytes wanted, %d left", n, len(r.b))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u16() uint16 { b := r.take(2); return uint16(b[0]) | uint16(b[1])<<8 }
func (r *reader) u32() uint32 { lo := uint32(r.u16()); return lo | uint32(r.u16())<<16 }
