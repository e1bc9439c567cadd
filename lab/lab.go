package lab

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"portcullis/images/manifest"
	"portcullis/internal/config"
	"portcullis/lab/channel"
	"portcullis/lab/pi"
	"portcullis/lab/qemu"
	"portcullis/lab/wire"
	"portcullis/lab/world"
)

// Services are the programs of the Pi in the order in which a lab starts them.
// Each must also come up in any other order.
var Services = []string{"gatewayd", "pxed", "attestd"}

// Options say what lab is wanted. The zero value of each is the default in brackets.
type Options struct {
	Name       string          // [lab]
	State      string          // base of the state directories [DefaultState]
	Repository string          // [the one around the working directory]
	Firmware   qemu.Firmware   // [uefi-http]
	Pi         string          // PiNetns or PiImage [PiNetns]
	Contained  bool            // pxed and attestd of a PiImage run as containers
	TPM        bool            // of the PC
	CPU        string          // model of the PC's processor for QEMU [qemu.Config's]
	Played     bool            // no QEMU: the PC's port leads into a namespace
	Tune       func(*Settings) // [nothing]
	Events     func(Event)     // sees every event, one at a time [nobody]
	Builder    *Builder        // shared by several labs of one process [a new one]
}

// Lab is a running lab. Its methods may be called concurrently, Close and Leave once.
type Lab struct {
	// Hardware of the PC when it is powered on next.
	Hardware qemu.Hardware
	// PCMAC is the MAC of the PC's card when it is powered on next; "" = the one
	// that the Pi knows.
	PCMAC string

	Log      *Log
	Wire     *wire.Wire
	Settings Settings
	MAC      string
	Name     string
	Built    *Built

	opts     Options
	place    place
	lockf    *os.File
	bin      string
	daemons  map[string]*daemon
	follows  sync.WaitGroup
	unfollow context.CancelFunc
	pi       *pi.Machine // nil: the Pi is the namespace gw

	mu      sync.Mutex
	record  record
	pc      *qemu.Machine
	powered time.Time
}

// Start builds what is needed, lays the wires and starts the services. The PC is
// off; PowerOn starts it. On failure, and when ctx ends, nothing remains.
func Start(ctx context.Context, o Options) (l *Lab, err error) {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Firmware == "" {
		o.Firmware = qemu.UEFIHTTP
	}
	if o.Pi == "" {
		o.Pi = PiNetns
	}
	if o.Contained && o.Pi != PiImage {
		return nil, fmt.Errorf("lab: only a Pi that is %s has containers", PiImage)
	}
	if o.Pi != PiNetns && o.Pi != PiImage {
		return nil, fmt.Errorf("lab: a Pi is %s or %s, not %q", PiNetns, PiImage, o.Pi)
	}
	if os.Getuid() != 0 {
		return nil, errors.New("lab: root is needed for network namespaces; use sudo")
	}
	p, err := newPlace(o.State, o.Name)
	if err != nil {
		return nil, err
	}
	if o.Builder == nil {
		o.Builder = &Builder{Repository: o.Repository}
	}
	l = &Lab{opts: o, place: p, Name: o.Name, MAC: macOf(o.Name), Log: NewLog(o.Events), daemons: map[string]*daemon{}}
	if l.lockf, err = p.lock(); err != nil {
		return nil, err
	}
	followCtx, unfollow := context.WithCancel(context.Background())
	l.unfollow = unfollow
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
			l = nil
		}
	}()
	if err = p.sweep(); err != nil {
		return l, fmt.Errorf("lab: removing what an earlier lab left: %w", err)
	}
	for _, d := range []string{"log", "run", "state", "pc"} {
		if err = os.MkdirAll(p.file(d), 0o700); err != nil {
			return l, fmt.Errorf("lab: %w", err)
		}
	}
	l.record = record{Name: o.Name, Owner: newProcess("lab", os.Getpid()), Firmware: string(o.Firmware), Pi: o.Pi, Created: time.Now()}
	if err = p.save(l.record); err != nil {
		return l, err
	}
	if err = l.prepare(ctx); err != nil {
		return l, err
	}
	return l, l.startServices(ctx, followCtx)
}

// prepare builds programs and image and writes the configuration.
func (l *Lab) prepare(ctx context.Context) error {
	began := time.Now()
	say := func(what string) { l.Event("lab.build", map[string]any{"what": what}) }
	var built *Built
	var err error
	if l.opts.Pi == PiImage {
		built, err = l.opts.Builder.BuildPi(ctx, l.opts.Contained, say)
	} else {
		built, err = l.opts.Builder.Build(ctx, say)
	}
	if err != nil {
		return err
	}
	l.Built, l.bin = built, built.Bin
	l.Settings = defaultSettings()
	l.Settings.ImageDir, l.Settings.ReleaseKey = built.Image, built.ReleaseKey
	operator, err := manifest.GenerateKey(l.OperatorKey())
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	l.Settings.OperatorKey = base64.StdEncoding.EncodeToString(operator)
	if l.opts.Tune != nil {
		l.opts.Tune(&l.Settings)
	}
	var text string
	if l.opts.Pi == PiImage {
		text, err = piConfig(l.Settings, l.MAC)
	} else {
		text, err = configFile(l.place, l.Settings, l.MAC, built.GatewayKey)
	}
	if err != nil {
		return fmt.Errorf("lab: configuration: %w", err)
	}
	if l.Settings.Policy != "" {
		if err := os.WriteFile(l.place.file("policy.yaml"), []byte(l.Settings.Policy), 0o600); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
	}
	path := l.place.file("portcullis.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if _, err := config.Load(path); err != nil {
		return fmt.Errorf("lab: the configuration it wrote: %w", err)
	}
	l.Event("lab.built", map[string]any{"seconds": seconds(began), "image": l.Settings.ImageDir})
	return nil
}

func (l *Lab) startServices(ctx, followCtx context.Context) (err error) {
	o := wire.Options{Name: l.Name, Played: l.opts.Played, MAC: l.MAC}
	if l.opts.Pi == PiImage {
		o.Pi = uplinkMAC(l.Name)
	}
	l.Wire, err = wire.New(o)
	if err != nil {
		return err
	}
	world := &daemon{name: "world", path: filepath.Join(l.bin, "portcullis"), start: l.Wire.Net.Start,
		args: []string{"lab", "world", "--control", l.place.world()}}
	if err := l.startDaemon(ctx, followCtx, world); err != nil {
		return err
	}
	if l.opts.Pi == PiImage {
		err = l.bootPi(ctx, followCtx)
	} else {
		err = l.startPi(ctx, followCtx)
	}
	if err != nil {
		return err
	}
	if !l.opts.Played {
		l.follow(followCtx, qemu.SerialLog(l.place.file("pc")), l.console)
	}
	l.Event("lab.ready", map[string]any{"name": l.Name, "firmware": string(l.opts.Firmware)})
	return nil
}

// startPi starts the services of a Pi that is a namespace.
func (l *Lab) startPi(ctx, followCtx context.Context) error {
	for _, name := range Services {
		d := &daemon{name: name, path: filepath.Join(l.bin, name), start: l.Wire.Gateway.Start,
			args: []string{"--config", l.place.file("portcullis.yaml")}}
		if err := l.startDaemon(ctx, followCtx, d); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) startDaemon(ctx, followCtx context.Context, d *daemon) error {
	d.log, d.note, d.event = l.place.log(d.name), l.note, l.Event
	mark := l.Log.Mark()
	l.daemons[d.name] = d
	l.follow(followCtx, d.log, func(line []byte) {
		if e, ok := ParseEvent(line, d.name); ok {
			l.Log.Add(e)
		}
	})
	if err := d.run(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return waitReady(ctx, l.Log, mark, d.name)
}

func (l *Lab) follow(ctx context.Context, path string, line func([]byte)) {
	l.follows.Add(1)
	go func() {
		defer l.follows.Done()
		Follow(ctx, path, line)
	}()
}

// console gives the stages of a boot the seconds since the power came on.
func (l *Lab) console(line []byte) {
	if e, ok := ParseConsole(string(line), time.Now()); ok {
		l.mu.Lock()
		e.Fields["since_power"] = seconds(l.powered)
		l.mu.Unlock()
		l.Log.Add(e)
	}
}

// Event adds an event of the lab itself.
func (l *Lab) Event(name string, fields map[string]any) {
	l.Log.Add(Event{Time: time.Now(), Name: name, Source: "lab", Fields: fields})
}

// note records a process so that a later lab can end it.
func (l *Lab) note(p process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.record.Processes[:0]
	for _, old := range l.record.Processes {
		if old.Name != p.Name {
			kept = append(kept, old)
		}
	}
	l.record.Processes = append(kept, p)
	l.place.save(l.record)
}

// PowerOn starts the PC.
func (l *Lab) PowerOn(ctx context.Context) error { return l.PowerOnWith(ctx) }

// PowerOnWith is PowerOn of a machine whose owner has put strings into its SMBIOS table.
func (l *Lab) PowerOnWith(ctx context.Context, strings ...string) error {
	if l.opts.Played {
		return errors.New("lab: this lab's PC is played, there is nothing to power on")
	}
	l.mu.Lock()
	running := l.pc != nil
	l.powered = time.Now()
	l.mu.Unlock()
	if running {
		return errors.New("lab: the PC is on")
	}
	m, err := qemu.Start(ctx, qemu.Config{
		Name: l.Name, Dir: l.place.file("pc"), Firmware: l.opts.Firmware, MAC: cmp.Or(l.PCMAC, l.MAC), Tap: wire.PCPort,
		MemoryMB: 2048, CPUs: 2, CPU: l.opts.CPU, TPM: l.opts.TPM, Strings: strings, Hardware: l.Hardware, Start: l.Wire.Gateway.Start,
	})
	if err != nil {
		return err
	}
	for name, pid := range m.PIDs() {
		l.note(newProcess(name, pid))
	}
	l.mu.Lock()
	l.pc = m
	l.mu.Unlock()
	l.Event("pc.power", map[string]any{"state": "on", "firmware": string(l.opts.Firmware)})
	l.follows.Add(1)
	go func() {
		defer l.follows.Done()
		for e := range m.QMP().Events() {
			switch e.Name {
			case "RESET":
				l.mu.Lock()
				l.powered = time.Now()
				l.mu.Unlock()
				l.Event("pc.reset", map[string]any{"detail": string(e.Data)})
			case "SHUTDOWN":
				l.Event("pc.power", map[string]any{"state": "off", "detail": string(e.Data)})
			}
		}
	}()
	return nil
}

// PowerCut takes the PC's power away at once.
func (l *Lab) PowerCut() {
	l.mu.Lock()
	m := l.pc
	l.pc = nil
	l.mu.Unlock()
	if m != nil {
		m.Kill()
		l.Event("pc.power", map[string]any{"state": "cut"})
	}
}

// PC returns the running machine, nil when the power is off.
func (l *Lab) PC() *qemu.Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pc
}

// Exec runs a command as root in the PC, over the lab image's command channel.
func (l *Lab) Exec(ctx context.Context, argv ...string) (channel.Response, error) {
	return channel.Run(ctx, qemu.ChannelSocket(l.place.file("pc")), channel.Request{Argv: argv})
}

// ExecIn is Exec with bytes on the command's standard input and a time after which
// it is killed.
func (l *Lab) ExecIn(ctx context.Context, stdin []byte, limit time.Duration, argv ...string) (channel.Response, error) {
	return channel.Run(ctx, qemu.ChannelSocket(l.place.file("pc")), channel.Request{Argv: argv, Stdin: stdin, LimitMS: limit.Milliseconds()})
}

// World asks what has reached the internet behind the gateway.
func (l *Lab) World(ctx context.Context) (world.Report, error) {
	return world.Get(ctx, l.place.world())
}

// KillService kills a service as a crash does. With hold it stays dead until
// ReleaseService; otherwise the supervisor starts it again at once.
func (l *Lab) KillService(ctx context.Context, name string, hold bool) error {
	if l.pi == nil {
		l.daemons[name].kill9(hold)
	} else if err := l.piKill(ctx, name, hold); err != nil {
		return fmt.Errorf("lab: killing %s: %w", name, err)
	}
	l.Event("lab.killed", map[string]any{"daemon": name})
	return nil
}

// ReleaseService lets a held service start again and waits until it is ready.
func (l *Lab) ReleaseService(ctx context.Context, name string) error {
	mark := l.Log.Mark()
	if l.pi == nil {
		l.daemons[name].release()
	} else if err := l.piRelease(ctx, name); err != nil {
		return fmt.Errorf("lab: starting %s: %w", name, err)
	}
	return waitReady(ctx, l.Log, mark, name)
}

// StateFile names a file of the services' state, for instance the ledger, as the
// commands of Run see it.
func (l *Lab) StateFile(rel string) string {
	if l.pi != nil {
		return filepath.Join(piStateDir, rel)
	}
	return l.place.file(filepath.Join("state", rel))
}

// OperatorKey is the key file of the operator who may approve fingerprints. It is
// beside the lab, not on the Pi.
func (l *Lab) OperatorKey() string { return l.place.file("operator.key") }

// RunDir is where the services' sockets are, as the commands of Run see it.
func (l *Lab) RunDir() string {
	if l.pi != nil {
		return piRunDir
	}
	return l.place.run()
}

// Console returns the end of the PC's serial console, for failure reports.
func (l *Lab) Console() string { return readable(lastLine(qemu.SerialLog(l.place.file("pc")))) }

// Run runs one of the project's programs (or any other) on the Pi and returns its
// output.
func (l *Lab) Run(ctx context.Context, argv ...string) ([]byte, error) {
	if l.pi != nil {
		out, err := l.pi.Output(ctx, argv...)
		return []byte(out), err
	}
	if !filepath.IsAbs(argv[0]) {
		if p := filepath.Join(l.bin, argv[0]); exists(p) {
			argv[0] = p
		}
	}
	return l.Wire.Gateway.Run(ctx, argv[0], argv[1:]...)
}

// Leave lets the lab run on without its owner; `lab down` ends it.
func (l *Lab) Leave() error {
	l.mu.Lock()
	l.record.Kept = true
	err := l.place.save(l.record)
	l.mu.Unlock()
	l.unfollow()
	l.place.unlock(l.lockf)
	return err
}

// Close ends and removes everything.
func (l *Lab) Close() error {
	l.PowerCut()
	for i := len(Services) - 1; i >= 0; i-- {
		if d := l.daemons[Services[i]]; d != nil {
			d.stop()
		}
	}
	if d := l.daemons["world"]; d != nil {
		d.stop()
	}
	if l.pi != nil {
		l.pi.Kill()
	}
	l.unfollow()
	l.follows.Wait()
	var errs []error
	if l.Wire != nil {
		errs = append(errs, l.Wire.Close())
	}
	for _, p := range append(l.record.Remove, l.place.dir()) {
		errs = append(errs, os.RemoveAll(p))
	}
	l.place.unlock(l.lockf)
	return errors.Join(errs...)
}

func seconds(since time.Time) float64 {
	return float64(time.Since(since).Milliseconds()) / 1000
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}
