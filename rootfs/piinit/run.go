package piinit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/hardware/detect"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// ModulesPath lists the kernel modules to load, one file a line.
const ModulesPath = "/etc/portcullis/modules"

// InitPath is the program that takes over PID 1 in the new root.
const InitPath = "/sbin/init"

// efiDir exists where UEFI started the kernel.
const efiDir = "/sys/firmware/efi"

// bootLimit bounds everything up to switch_root, a first boot on a slow card
// included, so that a machine that nobody watches cannot stand still for ever.
const bootLimit = 30 * time.Minute

// restartDelay leaves the reason on the screen.
const restartDelay = 10 * time.Second

// Run boots the Pi. It does not return: it ends in systemd, or in a restart of the machine.
func Run() {
	p := &process{log: boot.NewStageLog(os.Stderr, boot.Uptime), stage: func() string { return StageInit }}
	err := boot.Guard(p.run)
	p.log.Failed(p.stage(), reasoned(err))
	p.watchdog.Allow(2 * restartDelay)
	p.log.Note("restart", "seconds", int(restartDelay.Seconds()))
	time.Sleep(restartDelay)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	// Without the right to restart this is not PID 1 of a machine.
	os.Exit(1)
}

// process is what PID 1 has around a Boot.
type process struct {
	log       *boot.StageLog
	stage     func() string
	terminals *boot.Terminals
	modules   *boot.ModuleLoading
	watchdog  *boot.Watchdog
	keep      func() error // the Zymbit module's state
}

// at names the stage under way.
func (p *process) at(stage string) { p.stage = func() string { return stage } }

func (p *process) run() error {
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	info, err := p.prepare()
	if err != nil {
		return err
	}
	cmdline, err := boot.ReadCmdline()
	if err != nil {
		return boot.Failf(boot.ReasonCmdline, "%w", err)
	}
	b := &Boot{
		Info: info, Cmdline: cmdline, Firmware: os.DirFS(detect.DeviceTree), EFI: isDir(efiDir),
		Host: newLinux(info, p.modules.Before, func() { p.modules.Wait() }), Console: p.terminals, Log: p.log, Allow: p.watchdog.Allow,
		Random: rand.Reader, Times: DefaultTimes, People: luks2.ForPeople(),
	}
	p.stage, p.keep = b.Stage, func() error { return keepZymbit(newRoot, zymbitDir, b.moduleWorked(), b.conf) }
	r, err := b.Run(ctx)
	if err != nil {
		return err
	}

	p.at(StageSettings)
	if err := p.settings(ctx, r); err != nil {
		return err
	}
	p.at(StageSwitchRoot)
	p.log.Stage(StageSwitchRoot, "init", InitPath)
	if err := boot.MoveAll(boot.APIMounts, newRoot); err != nil {
		return err
	}
	p.watchdog.HandOver()
	return boot.SwitchRoot(newRoot, []string{InitPath}, []string{"HOME=/", "TERM=linux"})
}

// prepare makes the initramfs usable.
func (p *process) prepare() (*card.Info, error) {
	secrets := keepSecrets()
	if err := boot.MountAll(boot.APIMounts); err != nil {
		return nil, err
	}
	t, err := boot.OpenTerminals()
	if err != nil {
		return nil, err
	}
	p.terminals = t
	p.log.Redirect(t)
	t.Clear()
	p.log.Stage(StageInit)
	if secrets != nil {
		p.log.Note("secrets", "problem", secrets)
	}
	text, err := os.ReadFile("/" + card.InfoPath)
	if err != nil {
		return nil, boot.Failf(ReasonImage, "%w", err)
	}
	info, err := card.ParseInfo(text)
	if err != nil {
		return nil, boot.Failf(ReasonImage, "%w", err)
	}

	p.at(StageModules)
	if err := p.startModules(); err != nil {
		return nil, err
	}
	p.at(StageWatchdog)
	p.armWatchdog()
	return info, nil
}

// volumeModules is the module with which what only an open volume needs begins in the
// image's list: mappings, ciphers, file systems. They are loaded, and the kernel tries
// its ciphers out, while the chip is asked for the key.
const volumeModules = "dm-mod"

// startModules begins to load the drivers; the card is looked for meanwhile.
func (p *process) startModules() error {
	list, err := os.ReadFile(ModulesPath)
	if err != nil {
		return boot.Failf(boot.ReasonModules, "%w", err)
	}
	paths, err := boot.ParseModules(string(list))
	if err != nil {
		return err
	}
	p.modules = boot.StartModules(paths, volumeModules, func(results []boot.ModuleResult) {
		failed := 0
		for _, r := range results {
			if r.Err != nil {
				failed++
				p.log.Note("module", "detail", r.Err)
			}
		}
		p.log.Stage(StageModules, "loaded", len(results)-failed, "failed", failed)
	})
	return nil
}

// armWatchdog arms it before anything else is done. The image's list of modules begins
// with its driver; a machine whose watchdog needs more than that waits for all of them.
func (p *process) armWatchdog() {
	p.modules.First()
	var err error
	p.watchdog, err = boot.ArmWatchdog(boot.WatchdogDevice, stepLimit)
	if errors.Is(err, fs.ErrNotExist) {
		p.modules.Wait()
		p.watchdog, err = boot.ArmWatchdog(boot.WatchdogDevice, stepLimit)
	}
	switch {
	case err == nil:
		p.log.Stage(StageWatchdog, "seconds", int(p.watchdog.Timeout.Seconds()))
	case errors.Is(err, fs.ErrNotExist):
		p.log.Stage(StageWatchdog, "device", "none")
	default:
		p.log.Note(StageWatchdog, "problem", err)
	}
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// settings puts the operator's settings and our own findings where the running
// system looks for them.
func (p *process) settings(ctx context.Context, r *Result) error {
	p.watchdog.Allow(stepLimit)
	seed, err := settingsInForce(ctx, newRoot, r, p.log)
	if err != nil {
		return err
	}
	files := settingFiles(seed)
	if err := install(newRoot, files); err != nil {
		return err
	}
	if err := installSecrets(newRoot, seed); err != nil {
		return err
	}
	if err := p.keep(); err != nil {
		p.log.Note("zymbit", "problem", err)
	}
	if err := machineID(newRoot); err != nil {
		return err
	}
	h := r.Handover
	switch first, err := remember(newRoot, r.Enrolment); {
	case err != nil:
		p.log.Note("enrolment", "problem", err)
	case first != nil:
		h.ReEnrolled = first.ReEnrolled
	}
	h.Configured = seed != nil && seed.Config != nil
	h.Seconds = boot.Uptime().Seconds()
	text, err := h.Encode()
	if err != nil {
		return boot.Failf(ReasonSettings, "%w", err)
	}
	if err := install("/", map[string][]byte{strings.TrimPrefix(card.HandoverPath, "/"): text}); err != nil {
		return err
	}
	p.log.Stage(StageSettings, "files", len(files), "configured", yesNo(h.Configured))
	if !h.Configured {
		p.log.Note("no-settings", "detail", "the services do not start: put settings on the card with portcullis flash --seed")
	}
	return nil
}

const (
	machineIDFile = "machine-id"
	machineIDSize = 33 // bytes, the line feed included
)

// machineIDForm is that of machine-id(5).
var machineIDForm = regexp.MustCompile(`^[0-9a-f]{32}\n$`)

// machineID gives the system the same identity in every boot: the image has none,
// because all cards start from it, and DHCP servers and journals go by it.
func machineID(root string) error {
	dir := filepath.Join(root, dataDir)
	id, err := boot.ReadBeneath(dir, machineIDFile, 2*machineIDSize)
	if err != nil || !machineIDForm.Match(id) {
		var b [16]byte
		rand.Read(b[:])
		b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4, as machine-id(5) wants it
		id = fmt.Appendf(nil, "%x\n", b)
		if err := replaceFile(filepath.Join(dir, machineIDFile), id, 0o444); err != nil {
			return boot.Failf(ReasonSettings, "%w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/machine-id"), id, 0o444); err != nil {
		return boot.Failf(ReasonSettings, "%w", err)
	}
	return nil
}
