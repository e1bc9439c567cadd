package pcr_test

import (
	"bytes"
	"context"
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
	// Register 4, which firmware alone fills: its first boot option was this image.
	application, err := pcr.PredictBootApplication(image)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "PCRTEST pcr 4 "+strings.ToUpper(application.String())) {
		t.Errorf("PCR 4 is not %s; the event log has\n%s", application, log.of(4))
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

// The PC's owner adds to the signed command line by the firmware's SMBIOS table.
// The kernel obeys, and registers 9 and 12 show it; 11, the image, is unchanged.
func TestAttackCommandLineAddedThroughSMBIOSShowsInPCR12(t *testing.T) {
	dir := t.TempDir()
	image := testImage(t, dir)
	plain, err := pcr.Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	const added = "init=/attack"
	out := boot(t, dir, image, "-smbios", "type=11,value=io.systemd.stub.kernel-cmdline-extra="+added)
	if !strings.Contains(out, "PCRTEST cmdline "+cmdline+" "+added) {
		t.Fatal("the stub did not take the addition: this test no longer attacks anything")
	}
	log := eventLog(t, out)
	if got := log.replay(11); got != plain.PCR11 {
		t.Errorf("PCR 11 changed to %s", got)
	}
	if log.replay(9) == plain.PCR9 {
		t.Error("PCR 9 does not show the addition")
	}
	var utf16 []byte
	for _, c := range added + "\x00" {
		utf16 = append(utf16, byte(c), 0)
	}
	if want := (pcr.Value{}).Measure(utf16); log.replay(12) != want || plain.PCR12 == want {
		t.Errorf("PCR 12 is %s, the addition gives %s", log.replay(12), want)
	}
}

var endLine = regexp.MustCompile(`PCRTEST end`)

// boot runs the PC until its init has told everything and returns the serial
// console; extra are further arguments of QEMU.
func boot(t *testing.T, dir string, image []byte, extra ...string) string {
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
	pc := start(t, "qemu-system-x86", "qemu-system-x86_64", append(extra, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-no-reboot",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+code,
		"-drive", "if=pflash,format=raw,unit=1,file="+vars,
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no",
		"-netdev", "user,id=net0,tftp="+tftp+",bootfile=hpc.efi",
		"-device", "virtio-net-pci,netdev=net0,bootindex=1,romfile=",
		"-device", "virtio-rng-pci",
		"-chardev", "socket,id=tpm0,path="+socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-tis,tpmdev=tpm0",
		"-serial", "file:"+serial)...)
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
