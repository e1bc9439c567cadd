package hpcinit

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/images/manifest"
	"portcullis/rootfs/boot"
)

// ModulesPath lists the kernel modules to load, one file a line.
const ModulesPath = "/etc/portcullis/modules"

// InitPath is the program that takes over PID 1 in the new root.
const InitPath = "/sbin/init"

// bootLimit bounds everything up to switch_root. It is longer than the limits of
// the single steps together would normally be, and there so that a machine that nobody
// watches cannot stand still for ever.
const bootLimit = 10 * time.Minute

// restartDelay leaves the reason on the screen.
const restartDelay = 10 * time.Second

// Run boots the PC. It does not return: it ends in the new root's init, or in
// a restart of the machine.
func Run() {
	s := &sequence{log: boot.NewStageLog(os.Stderr, boot.Uptime), console: os.Stderr, stage: StageInit}
	err := boot.Guard(s.run)
	s.log.Failed(s.stage, err)
	time.Sleep(restartDelay)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	// Without the right to restart this is not PID 1 of a machine.
	os.Exit(1)
}

// sequence is the state of one boot.
type sequence struct {
	log     *boot.StageLog
	console *os.File
	stage   string // under way
	modules chan error
}

func (s *sequence) run() error {
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	signed, trust, err := s.prepare()
	if err != nil {
		return err
	}

	s.stage = StageNetwork
	link, lease, err := newNetwork(DefaultNetworkLimits).connect(ctx)
	if err != nil {
		return err
	}
	s.log.Stage(s.stage, "interface", link.Name, "mac", link.MAC, "address", lease.Address, "gateway", lease.Server, "session", lease.Session)

	s.stage = StageManifest
	src := Source{Addr: lease.HTTP, Path: lease.Path}
	envelope, err := fetchSmall(ctx, src, manifest.Envelope, manifest.MaxEnvelope, DefaultFetchLimits)
	if err != nil {
		return err
	}
	m, err := openManifest(envelope, trust, signed)
	if err != nil {
		return err
	}
	s.log.Stage(s.stage, "image", m.Image, "version", m.Version, "digest", m.Fingerprint())

	s.stage = StageRoot
	image, err := fetchRoot(ctx, s.log, src, m)
	if err != nil {
		return err
	}

	s.stage = StageModules
	select {
	case err = <-s.modules:
	case <-ctx.Done():
		err = boot.Failf(boot.ReasonModules, "a driver does not come back from its start")
	}
	if err != nil {
		return err
	}
	s.stage = StageVerity
	devs, err := mountRoot(image, signed)
	if err != nil {
		return err
	}
	s.log.Stage(s.stage, "device", devs.verity, "root", signed.RootHash)

	s.stage = StageAgent
	if err := writeNote(lease, trust, m, devs); err != nil {
		return err
	}
	if err := setIMA(); err != nil {
		// The machine boots, and attestd finds that nothing is measured.
		s.log.Note("measure", "detail", fmt.Sprint(err))
	}
	if err := boot.MoveAll(boot.APIMounts, newRoot); err != nil {
		return err
	}
	pid, err := startAgent(newRoot, s.console)
	if err != nil {
		return err
	}
	s.log.Stage(s.stage, "pid", pid)

	s.stage = StageSwitchRoot
	s.log.Stage(s.stage, "init", InitPath)
	return boot.SwitchRoot(newRoot, []string{InitPath}, []string{"HOME=/", "TERM=linux"})
}

// prepare makes the initramfs usable, starts loading the modules and reads
// what the signed image says.
func (s *sequence) prepare() (boot.Verity, manifest.Trust, error) {
	fail := func(err error) (boot.Verity, manifest.Trust, error) { return boot.Verity{}, manifest.Trust{}, err }
	if err := boot.MountAll(boot.APIMounts); err != nil {
		return fail(err)
	}
	if c, err := boot.OpenConsole(); err == nil { // without one, the lines stay on what the kernel gave
		s.console = c
		s.log.Redirect(c)
		fmt.Fprintln(c) // firmware leaves its own line without an end
	}
	s.log.Stage(StageInit)
	if err := boot.DisableIPv6(); err != nil {
		return fail(err)
	}
	cmdline, err := boot.ReadCmdline()
	if err != nil {
		return fail(boot.Failf(boot.ReasonCmdline, "%w", err))
	}
	signed, err := boot.ParseVerity(cmdline)
	if err != nil {
		return fail(err)
	}
	trust, err := readTrust(TrustPath)
	if err != nil {
		return fail(err)
	}
	list, err := os.ReadFile(ModulesPath)
	if err != nil {
		return fail(boot.Failf(boot.ReasonModules, "%w", err))
	}
	paths, err := boot.ParseModules(string(list))
	if err != nil {
		return fail(err)
	}
	s.modules = make(chan error, 1)
	go func() { s.modules <- boot.Guard(func() error { return s.loadModules(paths) }) }()
	return signed, trust, nil
}

// loadModules runs beside the network and the transfers: a card is used as soon
// as its driver has found it, while drivers for the root are still being loaded.
func (s *sequence) loadModules(paths []string) error {
	failed := 0
	for _, r := range boot.LoadModules(paths) {
		if r.Err != nil {
			failed++
			s.log.Note("module", "detail", fmt.Sprint(r.Err))
		}
	}
	s.log.Stage(StageModules, "loaded", len(paths)-failed, "failed", failed)
	return nil
}
