// Package detect finds out what a machine has for a root of trust and what its boot
// protects against. pi-init asks for the posture, the root commands for the whole
// report. It only reads files and runs listing tools; it changes nothing and
// proves nothing.
package detect

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"time"

	"portcullis/hardware"
)

// Host is where Detect looks. The zero value of a function leaves that part out.
type Host struct {
	// Root is the machine's "/".
	Root fs.FS
	// Run runs a listing tool and returns at most MaxOutput bytes of its output.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// TPM asks the chip behind a device node who it is.
	TPM func(ctx context.Context, device string) (hardware.Identity, error)
}

// MaxOutput caps what is read of a tool's output, in bytes.
const MaxOutput = 64 << 10

// Local is this machine; tpm may be nil.
func Local(tpm func(ctx context.Context, device string) (hardware.Identity, error)) Host {
	return Host{Root: os.DirFS("/"), Run: run, TPM: tpm}
}

// Report is what Detect found, in the --json shape of "portcullis root detect".
type Report struct {
	Board         Board            `json:"board"`
	Posture       hardware.Posture `json:"posture"`
	PostureDetail string           `json:"posture_detail"`
	EFI           bool             `json:"efi"` // booted by UEFI firmware
	BootImage     string           `json:"boot_img_sha256,omitempty"`
	BootPartition int              `json:"boot_partition,omitempty"`
	TPMs          []TPM            `json:"tpms"`
	Zymbit        Zymbit           `json:"zymbit"`
	PKCS11        []Module         `json:"pkcs11"`
	// Recommended is the strongest backend whose parts are all here; empty when none is.
	Recommended hardware.Backend `json:"recommended,omitempty"`
}

// TPM is one TPM character device.
type TPM struct {
	Device   string             `json:"device"`
	Version  string             `json:"version,omitempty"` // "2", "1" or empty when the kernel does not say
	Identity *hardware.Identity `json:"identity,omitempty"`
	Problem  string             `json:"problem,omitempty"`
}

// usable: a TPM 2.0 that answered.
func (t TPM) usable() bool { return t.Identity != nil && t.Problem == "" }

// Detect looks at everything and never fails as a whole: what could not be read is
// said in the part it belongs to.
func Detect(ctx context.Context, h Host) Report {
	r := Report{TPMs: []TPM{}, PKCS11: []Module{}, Posture: hardware.PostureNone}
	dt, err := fs.Sub(h.Root, "proc/device-tree")
	if err == nil {
		r.Board = Model(dt)
		r.Posture, r.PostureDetail = Posture(dt)
		if d, ok := BootImage(dt); ok {
			r.BootImage = hex.EncodeToString(d[:])
		}
		r.BootPartition, _ = Partition(dt)
	}
	r.EFI = exists(h.Root, "sys/firmware/efi")
	r.TPMs = append(r.TPMs, tpms(ctx, h)...)
	r.Zymbit = zymkey(h.Root)
	r.PKCS11 = append(r.PKCS11, modules(ctx, h)...)
	tpm := false
	for _, t := range r.TPMs {
		tpm = tpm || t.usable()
	}
	switch {
	case tpm && r.Zymbit.usable():
		r.Recommended = hardware.BackendCombined
	case tpm:
		r.Recommended = hardware.BackendTPM2
	case r.Zymbit.usable():
		r.Recommended = hardware.BackendZymbit
	default:
		r.Posture, r.PostureDetail = hardware.PostureNone, "no chip that could hold the disk's key was found"
	}
	return r
}

// tpms lists /sys/class/tpm. A chip is asked through its resource manager only: the
// bare device would be taken from whoever else uses it.
func tpms(ctx context.Context, h Host) []TPM {
	entries, err := fs.ReadDir(h.Root, "sys/class/tpm")
	if err != nil {
		return nil
	}
	var out []TPM
	for _, e := range entries {
		var n int
		if _, err := fmt.Sscanf(e.Name(), "tpm%d", &n); err != nil || fmt.Sprintf("tpm%d", n) != e.Name() {
			continue
		}
		t := TPM{Device: fmt.Sprintf("/dev/tpmrm%d", n)}
		if v, err := readCapped(h.Root, "sys/class/tpm/"+e.Name()+"/tpm_version_major", 16); err == nil {
			t.Version = printable(string(v))
		}
		switch {
		case t.Version == "1":
			t.Problem = "a TPM 1.2 has neither SHA-256 registers nor signed policies"
		case !exists(h.Root, t.Device[1:]):
			t.Problem = "the kernel knows the chip, but there is no " + t.Device
		case h.TPM != nil:
			id, err := h.TPM(ctx, t.Device)
			if err != nil {
				t.Problem = err.Error()
			} else {
				t.Identity = &id
			}
		}
		out = append(out, t)
	}
	return out
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}

// errTooLarge: a file of the system is larger than anything sensible.
var errTooLarge = errors.New("larger than expected")

func readCapped(root fs.FS, name string, limit int) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%s: %w", name, errTooLarge)
	}
	return b, nil
}

func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	c.WaitDelay = time.Second
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "SOFTHSM2_CONF=" + os.Getenv("SOFTHSM2_CONF")}
	if os.Getenv("SOFTHSM2_CONF") == "" {
		c.Env = c.Env[:2]
	}
	out := &head{limit: MaxOutput}
	c.Stdout = out
	err = c.Run()
	return out.b, err
}

// head keeps the first bytes and swallows the rest.
type head struct {
	b     []byte
	limit int
}

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), h.limit-len(h.b))]...)
	return len(p), nil
}
