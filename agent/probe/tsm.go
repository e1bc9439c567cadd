package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"
	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Tsm has the processor of a confidential virtual machine (TDX, SEV-SNP) sign a
// report for this question. It finds a host that booted something else, or that
// runs the machine without protection.
//
// It cannot see what the processor's maker does not measure, nor changes after the
// launch. A machine that is none says so. Unverified on hardware.
type Tsm struct{ Host }

// Name implements protocol.Probe.
func (*Tsm) Name() string { return protocol.OpTsm }

// Run implements protocol.Probe.
func (p *Tsm) Run(_ context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var q protocol.TsmParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &q); err != nil {
		return protocol.Output{}, err
	}
	data := key.ReportData(params)
	d := &protocol.TsmData{Present: true}
	r, err := p.report(data[:])
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.Present = false
	case err != nil:
		s := err.Error()
		d.Fault = s[:min(len(s), protocol.MaxReasonBytes)]
	default:
		d.Provider, d.Report, d.Certs = strings.TrimSuffix(r.Provider, "\n"), r.OutBlob, r.AuxBlob
	}
	return answer(key, p.Name(), params, d)
}

// report makes one; that nobody else wrote to its directory meanwhile is checked by
// its generation (Documentation/ABI/testing/configfs-tsm).
func (p *Tsm) report(data []byte) (*report.Response, error) {
	client, done, err := p.TSM()
	if err != nil {
		return nil, err
	}
	defer done()
	open, err := report.Create(client, &report.Request{InBlob: data, GetAuxBlob: true})
	if err != nil {
		return nil, missing(client, err)
	}
	r, err := open.Get()
	if err != nil && report.GetGenerationErr(err) == nil {
		// A provider that has no certificates to give has no such attribute.
		open.GetAuxBlob = false
		r, err = open.Get()
	}
	return r, errors.Join(err, open.Destroy())
}

// missing tells a kernel without such reports, or a machine that is none, from a
// report that failed. A kernel with the reports built in has their directory on every
// machine; ENXIO is its answer where no driver of a confidential machine is behind it.
func missing(client configfsi.Client, err error) error {
	if c, ok := client.(*configfs); ok && (errors.Is(c.refused, fs.ErrNotExist) || errors.Is(c.refused, unix.ENXIO)) {
		return fs.ErrNotExist
	}
	return err
}

// openTSM mounts configfs where no path leads to, as special does. A kernel that has
// not loaded it is not asked to: the driver of a confidential machine would have.
func (h Host) openTSM() (configfsi.Client, func(), error) {
	known, err := read(h.Proc, "filesystems")
	if err != nil {
		return nil, nil, err
	}
	if !strings.Contains(string(known), "\tconfigfs\n") {
		return nil, nil, fs.ErrNotExist
	}
	fsfd, err := unix.Fsopen("configfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("open file system configfs: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, nil, fmt.Errorf("create file system configfs: %w", err)
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("mount file system configfs: %w", err)
	}
	return &configfs{mount: fmt.Sprintf("/proc/self/fd/%d", mnt)}, func() { unix.Close(mnt) }, nil
}

// configfs reaches below a mount what the library calls by configfsi.TsmPrefix.
type configfs struct {
	mount   string
	refused error // why no report could be begun; the library hands on its text only
}

func (c *configfs) path(name string) string {
	return filepath.Join(c.mount, "tsm", strings.TrimPrefix(name, configfsi.TsmPrefix))
}

func (c *configfs) MkdirTemp(dir, pattern string) (string, error) {
	made, err := os.MkdirTemp(c.path(dir), pattern)
	if c.refused = err; err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(made)), nil
}

func (c *configfs) ReadFile(name string) ([]byte, error) { return read(c.path(name)) }

func (c *configfs) ReadDir(name string) ([]os.DirEntry, error) { return os.ReadDir(c.path(name)) }

func (c *configfs) WriteFile(name string, contents []byte) error {
	return os.WriteFile(c.path(name), contents, 0o220)
}

// RemoveAll removes one entry: the kernel takes its files away with it.
func (c *configfs) RemoveAll(name string) error { return os.Remove(c.path(name)) }
