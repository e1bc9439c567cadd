// Command verifierd is the Verification module: Docker on the Pi loads and runs
// only what the log of approvals contains. It answers callers of Docker's API on a
// socket of its own, is the authorization plugin of the engine, and keeps the log.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/internal/clock"
	"portcullis/internal/config"
	"portcullis/internal/event"
	"portcullis/internal/rpc"
	"portcullis/verifier/approval"
	"portcullis/verifier/declared"
	"portcullis/verifier/engine"
	"portcullis/verifier/guard"
	"portcullis/verifier/image"
	"portcullis/verifier/lock"
	"portcullis/verifier/record"
	"portcullis/verifier/services"
	"portcullis/verifier/stamp"
)

// settings are the flags.
type settings struct {
	config     string
	engine     string
	containerd string
	plugins    string
	approvers  string
	keep       bool
	services   string
	units      bool
}

// memoryLimit keeps the heap small while an image of many names is read or compared: far
// below MemoryMax of the unit, which counts the program and what it has written too.
const memoryLimit = 40 << 20

func main() {
	var s settings
	flag.StringVar(&s.config, "config", config.DefaultPath, "configuration file")
	flag.StringVar(&s.engine, "engine", "/run/portcullis/engine/docker.sock", "socket of dockerd, in a directory of mode 0700")
	flag.StringVar(&s.containerd, "containerd", "/run/containerd/containerd.sock", "address of the containerd behind dockerd: what runs there without dockerd is ended")
	flag.StringVar(&s.plugins, "plugins", "/run/docker/plugins", "where dockerd looks for its authorization plugin")
	flag.StringVar(&s.approvers, "approvers", "/etc/portcullis/approvers.json", "whose signatures make an approval; nobody's where it is not there")
	flag.BoolVar(&s.keep, "keep", false, "keep what is loaded, and load it again into an engine that begins with an empty disk")
	flag.StringVar(&s.services, "services", "/usr/share/portcullis/services", "images of the Pi's own services and their approvals, NAME.tar and NAME.approval, as they came with the system")
	flag.BoolVar(&s.units, "units", false, "the Pi's services are in the slices system-contained-NAME.slice of systemd, and their output is in its journal")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, s)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "verifierd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	debug.SetMemoryLimit(memoryLimit)
	c, err := config.Load(s.config)
	if err != nil {
		return err
	}
	events := event.NewJSON(os.Stdout, "verifierd", time.Now)
	dir := filepath.Join(c.StateDir, "verifierd")
	log, err := openLog(dir, s.approvers, c.Verifier, events)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := private(filepath.Dir(s.engine)); err != nil {
		return err
	}
	press := stamp.New(time.Now)
	door, err := engine.New(s.engine, press)
	if err != nil {
		return err
	}
	quarantine := filepath.Join(dir, "quarantine")
	if err := emptied(quarantine); err != nil {
		return err
	}
	socket, kept := filepath.Join(c.RunDir, rpc.GuardSocket), ""
	if s.keep {
		kept = filepath.Join(dir, "images")
	}
	own, err := contained(c, s, log)
	if err != nil {
		return err
	}
	purposes, names := reserved()
	g, err := guard.New(guard.Options{Engine: door, Approvals: log, StateDir: dir, Kept: kept, Socket: socket, Door: s.engine, Binaries: programs, Containerd: s.containerd,
		Reserved: purposes, ReservedNames: names, Gate: true,
		Read: func(ctx context.Context, from io.Reader, o image.Options) (*image.Archive, error) {
			return image.Read(ctx, from, quarantine, o)
		}, Clock: clock.Real{}, Events: events})
	if err != nil {
		return err
	}
	return serve(ctx, c, s, parts{log, press, g, events, socket, services.New(own, g, log, clock.Real{}, events)})
}

// programs of Debian's engine, and the runtime before its own, whose bytes are watched.
var programs = []string{"/usr/lib/portcullis/runc-gate", "/usr/sbin/dockerd", "/usr/bin/dockerd", "/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc", "/usr/bin/runc"}

type parts struct {
	log    *record.Record
	press  *stamp.Press
	guard  *guard.Guard
	events *event.Writer
	socket string
	keeper *services.Keeper
}

// serve opens the sockets, the plugin's first: the engine does not start without it,
// and refuses everything while it is away.
func serve(ctx context.Context, c *config.Config, s settings, p parts) error {
	plugin, err := rpc.Listen(filepath.Join(s.plugins, "portcullis.sock"), nil)
	if err != nil {
		return err
	}
	defer plugin.Close()
	users, err := rpc.Listen(p.socket, c.Verifier.AllowedUIDs)
	if err != nil {
		return err
	}
	defer users.Close()
	control, err := rpc.Listen(filepath.Join(c.RunDir, rpc.VerifierSocket), nil)
	if err != nil {
		return err
	}
	defer control.Close()
	runtime, err := rpc.Listen(filepath.Join(c.RunDir, rpc.GateSocket), nil)
	if err != nil {
		return err
	}
	defer runtime.Close()
	second := lock.Handler(p.press, func(method, uri, reason, detail string) {
		if err := p.guard.Refuse(record.Refusal{Action: guard.ActionEngine, Reason: reason, Detail: method + " " + uri + ": " + detail, Caller: "engine"}); err != nil {
			p.events.Emit("log.failed", event.Fields{"reason": guard.ReasonLog, "detail": err.Error()})
		}
	})
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewVerifierHandler(guard.NewService(p.guard)))
	mux.Handle("/approvals", p.log.API())
	mux.Handle("/approvals/", p.log.API())

	mux.Handle("GET "+declared.StatusPath, tellServices(p.keeper))

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := []func() error{
		func() error { return rpc.Serve(ctx, plugin, second) },
		func() error { return rpc.Serve(ctx, control, mux) },
		func() error { return p.guard.Serve(ctx, users) },
		func() error { return p.guard.ServeGate(ctx, runtime) },
		func() error { return p.guard.Run(ctx) },
		func() error { return p.log.Run(ctx) },
		func() error { return p.keeper.Run(ctx) },
	}
	if c.Verifier.Listen != "" {
		others, h, err := listenPublic(c, p)
		if err != nil {
			return err
		}
		defer others.Close()
		work = append(work, func() error { return servePublic(ctx, others, h) })
	}
	p.events.Emit("ready", event.Fields{"engine": s.engine, "approvals": len(p.log.Approvals())})
	notify()
	ended := make(chan error, len(work))
	for _, f := range work {
		go func() {
			err := f()
			if err != nil {
				cancel(err)
			}
			ended <- err
		}()
	}
	for range work {
		err = errors.Join(err, <-ended)
	}
	return err
}

// openLog opens the log of approvals. Without a file of approvers there are none,
// and nothing is approved; a file that cannot be used ends the start.
func openLog(dir, file string, c config.Verifier, events *event.Writer) (*record.Record, error) {
	key, err := logKey(filepath.Join(dir, "log.key"))
	if err != nil {
		return nil, err
	}
	approvers, err := approval.LoadApprovers(file)
	if errors.Is(err, fs.ErrNotExist) {
		events.Emit("approvers.none", event.Fields{"file": file, "reason": approval.ReasonApprovers})
		approvers, err = approval.Approvers{}, nil
	}
	if err != nil {
		return nil, err
	}
	asked, err := witnesses(c)
	if err != nil {
		return nil, err
	}
	return record.Open(record.Options{Dir: filepath.Join(dir, "log"), Key: key, Approvers: approvers, Now: time.Now, Witnesses: asked})
}

// private makes the directory of the engine's socket, for nobody but root.
func private(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if sys := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != 0o700 || int(sys.Uid) != os.Getuid() {
		return fmt.Errorf("%s: mode %04o of user %d: others would reach the engine's socket", dir, st.Mode().Perm(), sys.Uid)
	}
	return nil
}

// emptied makes a directory without what a former life left in it.
func emptied(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// notify tells systemd that the plugin listens: the engine's unit waits for it.
func notify() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // systemd gives the unit up after its time; there is nobody else to tell
	}
	defer c.Close()
	c.Write([]byte("READY=1"))
}
